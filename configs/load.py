"""From YAML files and `key.sub=value` overrides to a checked `Config`; every mistake is one line."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails

from configs import checks, describe
from configs.errors import ConfigError
from configs.files import COMMAND_LINE, Draft, Dumper, parse_yaml, read
from configs.problems import Problem
from configs.schema import Config


@dataclass(frozen=True)
class Loaded:
    """A checked configuration that still knows where each key was set."""

    config: Config
    draft: Draft

    def resolve(self, world_size: int) -> Config:
        """Fill what depends on the number of processes. Raises ConfigError, with the origin of each key."""
        try:
            return checks.resolve(self.config, world_size)
        except checks.Impossible as error:
            raise _error(error.problems, self.draft) from None


def load(path: str | Path, overrides: Sequence[str] = ()) -> Config:
    """Read `path` and what it extends, apply `key.sub=value` overrides, validate and check.

    Raises ConfigError whose message is one line per problem: `origin: key = value: what is allowed`.
    """
    return load_with_origins(path, overrides).config


def load_with_origins(path: str | Path, overrides: Sequence[str] = ()) -> Loaded:
    """As `load`, keeping the origin of each key for later messages."""
    draft = read(path)
    problems = [problem for override in overrides for problem in _override(draft, override)]
    problems += _mistyped(draft.values)
    try:
        config = Config.model_validate(draft.values)
    except ValidationError as error:
        reported = {problem.key for problem in problems}
        problems += [problem for problem in _translate(error, draft.values) if problem.key not in reported]
        raise _error(problems, draft) from None
    problems += checks.check(config) if not problems else []
    if problems:
        raise _error(problems, draft)
    return Loaded(config, draft)


def dump(config: Config) -> str:
    """The configuration as YAML that `load` reads back equal."""
    return yaml.dump(config.model_dump(mode="json"), Dumper=Dumper, sort_keys=False, allow_unicode=True)


def _error(problems: Iterable[Problem], draft: Draft) -> ConfigError:
    return ConfigError("\n".join(dict.fromkeys(problem.line(draft) for problem in problems)))


def _override(draft: Draft, text: str) -> Iterator[Problem]:
    """Apply one override to the draft, or say why it cannot be."""
    key, equals, raw = text.partition("=")
    if not equals:
        draft.origins[text] = COMMAND_LINE
        yield Problem(text, "must be key=value, for example model.layers=8")
        return
    info = describe.find(key)
    if info is None:
        draft.origins[key] = COMMAND_LINE
        yield Problem(key, describe.no_such_key(key))
        return
    is_text = any(kind in (str, Path) for kind in describe.kinds(info))
    value = parse_yaml(raw, f"{COMMAND_LINE}: {key}")
    if is_text and not (isinstance(value, str) or (value is None and raw and type(None) in describe.kinds(info))):
        value = raw  # run.name=2024 names a run, it is no number
    yield from _assign(draft, key.split("."), value)


def _assign(draft: Draft, parts: list[str], value: Any) -> Iterator[Problem]:
    """Set a dotted key; an index must name an entry that is there."""
    digits = next((position for position, part in enumerate(parts) if part.isdigit()), None)
    if digits is None:
        nested = value
        for part in reversed(parts):
            nested = {part: nested}
        draft.merge(nested, COMMAND_LINE)
        return
    entries: Any = draft.values
    for part in parts[:digits]:
        entries = entries.get(part) if isinstance(entries, dict) else None
    count = len(entries) if isinstance(entries, list) else 0
    name, key = ".".join(parts[:digits]), ".".join(parts)
    draft.origins[key] = COMMAND_LINE
    if int(parts[digits]) >= count or not isinstance(entries[int(parts[digits])], dict):
        entry = "entry" if count == 1 else "entries"
        yield Problem(key, f"{name} has {count} {entry}, counted from 0; set the whole list: '{name}=[{{path: ...}}]'")
        return
    entries[int(parts[digits])][parts[-1]] = value


def _mistyped(values: dict[str, Any]) -> Iterator[Problem]:
    """What pydantic would let pass: `true` as a number."""
    for key, value in _scalars(values):
        info = describe.find(key)
        if info is None:
            continue
        if isinstance(value, bool) and bool not in describe.kinds(info):
            yield Problem(key, describe.allowed(info), value)


def _translate(error: ValidationError, values: dict[str, Any]) -> Iterator[Problem]:
    """What pydantic reports, in our words."""
    for detail in error.errors():
        yield _problem(detail, values)


def _problem(detail: ErrorDetails, values: dict[str, Any]) -> Problem:
    key = ".".join(str(part) for part in detail["loc"])
    if detail["type"] == "extra_forbidden":
        return Problem(key, _unknown(key))
    while (info := describe.find(key)) is None and "." in key:
        key = key.rpartition(".")[0]  # an entry of a tuple or list: report the whole
    assert info is not None, f"pydantic reported {detail['loc']}, which the schema does not have"
    if detail["type"] == "missing" and key == ".".join(str(part) for part in detail["loc"]):
        return _missing(key, info)
    value = _at(values, key)
    if detail["type"] == "string_pattern_mismatch":
        return Problem(key, describe.NAME_RULE, value)
    if detail["type"] == "too_short":
        return Problem(key, "must have at least one entry, for example [{path: runs/data/stdlib-bytes}]", value)
    if detail["type"] == "finite_number":
        return Problem(key, f"{describe.allowed(info)} and finite", value)
    return Problem(key, describe.allowed(info) + describe.near_choice(value, info), value)


def _missing(key: str, info: FieldInfo) -> Problem:
    """A missing section is reported by the first key it must have."""
    if isinstance(info.annotation, type) and issubclass(info.annotation, BaseModel):
        inner, below = next(
            (name, field) for name, field in info.annotation.model_fields.items() if field.is_required()
        )
        return _missing(f"{key}.{inner}", below)
    return Problem(key, f"must be set: {(info.description or '').rstrip('.')}")


def _unknown(key: str) -> str:
    if describe.find(key) is not None:
        return f"is written with dots; in a file write it nested, {_nested(key)}"
    return describe.no_such_key(key)


def _nested(key: str) -> str:
    parts = key.split(".")
    return "".join(f"{part}: {{" for part in parts[:-1]) + f"{parts[-1]}: ..." + "}" * (len(parts) - 1)


def _scalars(value: Any, key: str = "") -> Iterator[tuple[str, Any]]:
    """Every single value with its dotted key."""
    entries = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else None
    if entries is None:
        yield key, value
        return
    for name, item in entries:
        yield from _scalars(item, f"{key}.{name}" if key else str(name))


def _at(values: Any, key: str) -> Any:
    for part in key.split("."):
        if isinstance(values, list):
            values = values[int(part)]
        elif isinstance(values, dict) and part in values:
            values = values[part]
        else:
            return None
    return values
