"""Layers of a study over its base configuration: dotted keys, and where each was written, for the user's errors."""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from configs.errors import ConfigError
from configs.files import COMMAND_LINE, read
from configs.flatten import flatten
from configs.load import load
from configs.schema import Config


@dataclass(frozen=True)
class Layer:
    """Dotted keys with their values, and where they were written."""

    origin: str
    values: dict[str, Any]

    @property
    def assignments(self) -> list[str]:
        return [f"{key}={json.dumps(value)}" for key, value in self.values.items()]  # JSON is YAML


def read_layer(study: Path, name: str, source: Path | dict[str, Any]) -> Layer:
    """A named layer of a study file: sections written there, or a file relative to it. Raises ConfigError."""
    if isinstance(source, dict):
        return Layer(f"{study}: {name}", dict(flatten(source)))
    draft = read(study.parent / source)
    return Layer(draft.path, dict(flatten(draft.values)))


def command_line(overrides: Sequence[str]) -> Layer:
    """The keys of `key.sub=value` overrides; their values are parsed by `configs.load`."""
    return Layer(COMMAND_LINE, {text.partition("=")[0]: None for text in overrides})


def refuse(layer: Layer, reasons: dict[str, str]) -> None:
    """Raise ConfigError, in one line, if the layer sets a key of `reasons`."""
    for key in layer.values:
        if key in reasons:
            raise ConfigError(f"{layer.origin}: {key}: must not be set here; {reasons[key]}")


def load_layers(path: Path, layers: Sequence[Layer], overrides: Sequence[str], own: Layer | None = None) -> Config:
    """The base with the layers over it, then the command line's overrides, then what the study itself sets.

    Raises: ConfigError whose lines name the layer that each key comes from.
    """
    before = [assignment for layer in layers for assignment in layer.assignments]
    try:
        return load(path, [*before, *overrides, *(own.assignments if own else [])])
    except ConfigError as error:
        all_layers = [*layers, command_line(overrides), *([own] if own else [])]
        origins = {key: layer.origin for layer in all_layers for key in layer.values}
        raise ConfigError("\n".join(_attributed(line, origins) for line in str(error).splitlines())) from None


def _attributed(line: str, origins: dict[str, str]) -> str:
    """To `load` a layer is a command line: name the file that the key, or another one in the line, comes from."""
    match = re.match(rf"{COMMAND_LINE}: ([^\s:=]+)", line)
    if match is None:
        return line
    named = [key for key in reversed(origins) if re.search(rf"(?<![\w.]){re.escape(key)}(?![\w.])", line)]
    key = match[1] if match[1] in origins else next(iter(named), None)
    return line if key is None else origins[key] + line.removeprefix(COMMAND_LINE)
