"""YAML configuration files: `extends`, merging, and the origin of every key.

The YAML read here is the core schema of YAML 1.2: `1e-3` is a number, and `on`, `yes` and `2024-01-01` are text.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from difflib import get_close_matches
from os.path import normpath
from pathlib import Path
from typing import Any

import yaml

from configs.errors import ConfigError

COMMAND_LINE = "command line"

_CORE_SCHEMA = {
    "null": (r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    "bool": (r"true|True|TRUE|false|False|FALSE", list("tTfF")),
    "int": (r"[-+]?(?:0|[1-9][0-9]*)", list("-+0123456789")),
    "float": (
        r"[-+]?(?:(?:[0-9]+\.[0-9]*|\.[0-9]+)(?:[eE][-+]?[0-9]+)?|[0-9]+[eE][-+]?[0-9]+|\.(?:inf|Inf|INF))"
        r"|\.(?:nan|NaN|NAN)",
        list("-+0123456789."),
    ),
    "merge": (r"<<", ["<"]),
}


class Loader(yaml.SafeLoader):
    """SafeLoader with the core schema of YAML 1.2, refusing a key written twice."""

    yaml_implicit_resolvers = {}  # noqa: RUF012 (none of YAML 1.1's)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.value in seen:
                raise yaml.constructor.ConstructorError(None, None, f"key {key.value} is written twice", key.start_mark)
            seen.add(str(key.value))
        return super().construct_mapping(node, deep)


class Dumper(yaml.SafeDumper):
    """SafeDumper that quotes what either YAML 1.1 or `Loader` would not read back as text."""


for _name, (_pattern, _first) in _CORE_SCHEMA.items():
    for _class in (Loader, Dumper):
        _class.add_implicit_resolver(f"tag:yaml.org,2002:{_name}", re.compile(f"^(?:{_pattern})$"), _first)


@dataclass
class Draft:
    """Merged values before validation. `origins` maps a dotted key that was set to the file, or `command line`."""

    path: str
    values: dict[str, Any] = field(default_factory=dict)
    origins: dict[str, str] = field(default_factory=dict)

    def merge(self, values: dict[str, Any], origin: str) -> None:
        """Lay `values` over what is there: sections merge key by key, everything else is replaced."""
        _merge(self.values, values)
        for key in leaves(values):
            self._forget(key)
            self.origins[key] = origin

    def origin(self, key: str) -> str | None:
        """Where `key`, or the list it is in, was set; None for a default."""
        while key:
            if key in self.origins:
                return self.origins[key]
            key = key.rpartition(".")[0]
        return None

    def _forget(self, key: str) -> None:
        for other in [other for other in self.origins if other.startswith(f"{key}.")]:
            del self.origins[other]


def read(path: str | Path) -> Draft:
    """Read a YAML file and everything it extends. Raises ConfigError."""
    draft = Draft(display(path))
    _read_into(draft, Path(path), ())
    return draft


def display(path: str | Path) -> str:
    """A path as messages show it."""
    return normpath(path)


def leaves(values: dict[str, Any], prefix: str = "") -> Iterator[str]:
    """Dotted keys of everything that is not a non-empty section."""
    for key, value in values.items():
        if isinstance(value, dict) and value:
            yield from leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}"


def parse_yaml(text: str, origin: str) -> Any:
    """Parse one YAML document. Raises ConfigError with `origin:line:column`."""
    try:
        return _text_keys(yaml.load(text, Loader))  # noqa: S506 (a SafeLoader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place = f"{origin}:{mark.line + 1}:{mark.column + 1}" if mark else origin
        raise ConfigError(f"{place}: not valid YAML: {' '.join(str(error.problem).split())}") from None
    except yaml.YAMLError as error:
        raise ConfigError(f"{origin}: not valid YAML: {' '.join(str(error).split())}") from None
    except ValueError as error:  # a number of more than 4,300 digits, an impossible date under !!timestamp
        raise ConfigError(f"{origin}: cannot be read: {' '.join(str(error).split())[:80]}") from None
    except RecursionError:
        raise ConfigError(f"{origin}: is nested too deeply, or contains itself (an alias inside its anchor)") from None


def _read_into(draft: Draft, path: Path, above: tuple[Path, ...]) -> None:
    """Merge the bases of `path`, then `path` itself. `above` are the files that led here, outermost first."""
    origin = display(path)
    values = _mapping(path, origin)
    bases = values.pop("extends", [])
    bases = [bases] if isinstance(bases, str) else bases
    if not isinstance(bases, list) or not all(isinstance(base, str) for base in bases):
        raise ConfigError(f"{origin}: extends = {bases}: must be a file name or a list of file names")
    chain = (*above, path.resolve())
    for base in bases:
        base_path = path.parent / base
        if base_path.resolve() in chain:
            names = " -> ".join(link.name for link in (*chain, base_path))
            raise ConfigError(f"{origin}: extends = {base}: a file cannot extend itself ({names})")
        if not base_path.is_file():
            raise ConfigError(f"{origin}: extends = {base}: {_no_file(base_path)}")
        _read_into(draft, base_path, chain)
    draft.merge(values, origin)


def _mapping(path: Path, origin: str) -> dict[str, Any]:
    if path.is_dir():
        raise ConfigError(f"{origin}: is a folder; name a YAML file in it")
    if not path.is_file():
        raise ConfigError(f"{origin}: {_no_file(path)}")
    try:
        text = path.read_text("utf-8")
    except UnicodeDecodeError as error:
        raise ConfigError(f"{origin}: is not UTF-8 text (byte {error.start})") from None
    except OSError as error:
        raise ConfigError(f"{origin}: cannot be read: {error.strerror}") from None
    values = parse_yaml(text, origin)
    if values is None:
        raise ConfigError(f"{origin}: is empty; it must set data.sources at least, or extend a file that does")
    if not isinstance(values, dict):
        kind = "a list" if isinstance(values, list) else "a single value"
        raise ConfigError(f"{origin}: is {kind} at the top; it must be a mapping of sections (data:, model:, ...)")
    return values


def _no_file(path: Path) -> str:
    if not path.parent.is_dir():
        return f"no such file (there is no folder {display(path.parent)})"
    names = [entry.name for entry in path.parent.iterdir() if entry.suffix in (".yaml", ".yml")]
    nearest = get_close_matches(path.name, names, 1) or get_close_matches(f"{path.name}.yaml", names, 1)
    return f"no such file; did you mean {display(path.parent / nearest[0])}?" if nearest else "no such file"


def _text_keys(value: Any) -> Any:
    """Keys as text, so that `1: x` is an unknown key like any other."""
    if isinstance(value, dict):
        return {str(key): _text_keys(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_text_keys(item) for item in value]
    return value


def _merge(below: dict[str, Any], above: dict[str, Any]) -> None:
    for key, value in above.items():
        if isinstance(value, dict) and isinstance(below.get(key), dict):
            _merge(below[key], value)
        else:
            below[key] = _copy(value)


def _copy(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _copy(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_copy(item) for item in value]
    return value
