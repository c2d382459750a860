"""What the schema allows, in words: keys and their neighbours, types and bounds, and the nearest right name."""

import types
from collections.abc import Iterable
from difflib import get_close_matches
from functools import cache
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin

import yaml
from annotated_types import Ge, Gt, Le, Lt
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from configs.files import Dumper
from configs.schema import Config

NAME_RULE = "must be parts joined by '/', each a letter or digit followed by letters, digits, '.', '_', '+' or '-'"
SIGNS = {Ge: (">=", "ge"), Gt: (">", "gt"), Le: ("<=", "le"), Lt: ("<", "lt")}


@cache
def fields(model: type[BaseModel] = Config, prefix: str = "") -> dict[str, FieldInfo]:
    """Every field by dotted key, sections included; `*` stands for an index: `data.sources.*.path`."""
    found: dict[str, FieldInfo] = {}
    for name, info in model.model_fields.items():
        found[prefix + name] = info
        section = section_of(info)
        if section is not None:
            below = ".*." if get_origin(info.annotation) is list else "."
            found |= fields(section, prefix + name + below)
    return found


def find(key: str) -> FieldInfo | None:
    """The field a dotted key names; indices are allowed: `data.sources.0.path`."""
    return fields().get(_pattern(key))


def section_of(info: FieldInfo) -> type[BaseModel] | None:
    """The section a field holds, or holds a list of."""
    for kind in (info.annotation, *get_args(info.annotation)):
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            return kind
    return None


def kinds(info: FieldInfo) -> tuple[Any, ...]:
    """The field's types: `(int, NoneType)` for `int | None`."""
    is_union = get_origin(info.annotation) in (Union, types.UnionType)
    return get_args(info.annotation) if is_union else (info.annotation,)


def choices(info: FieldInfo) -> list[str]:
    """The values of a Literal, as written in YAML."""
    return [str(value) for kind in kinds(info) if get_origin(kind) is Literal for value in get_args(kind)]


def allowed(info: FieldInfo) -> str:
    """What a value must be: `must be a whole number >= 1 or null`."""
    text = " or ".join(_kind(kind, info) for kind in kinds(info) if kind is not types.NoneType)
    return f"must be {text}{' or null' if types.NoneType in kinds(info) else ''}"


def no_such_key(key: str) -> str:
    """`no such key; did you mean model.layers?`, or the keys there are."""
    parent, _, leaf = key.rpartition(".")
    siblings = _names_in(parent)
    elsewhere = [other for other in fields() if "*" not in other and other.rpartition(".")[2] == leaf]
    nearest = get_close_matches(leaf, siblings, 1)
    if nearest:
        return f"no such key; did you mean {_join(parent, nearest[0])}?"
    if elsewhere:
        return f"no such key; did you mean {either(elsewhere)}?"
    if siblings:
        return f"no such key; {parent or 'a configuration'} has {', '.join(siblings)}"
    similar = get_close_matches(key, [other for other in fields() if "*" not in other], 1)
    return f"no such key; did you mean {similar[0]}?" if similar else "no such key"


def near_choice(value: object, info: FieldInfo) -> str:
    """`; did you mean layernorm?` for a misspelt choice, or nothing."""
    nearest = get_close_matches(str(value), choices(info), 1)
    return f"; did you mean {nearest[0]}?" if nearest else ""


def either(items: Iterable[object]) -> str:
    """`1, 2 or 4`; long lists keep their ends."""
    texts = [str(item) for item in items]
    if len(texts) > 12:
        texts = [*texts[:8], "...", texts[-1]]
    return " or ".join(filter(None, [", ".join(texts[:-1]), texts[-1]]))


def shown(value: object) -> str:
    """A value on one line as YAML, shortened."""
    value = str(value) if isinstance(value, Path) else value
    text = yaml.dump(value, Dumper=Dumper, default_flow_style=True, width=10_000, sort_keys=False, allow_unicode=True)
    text = " ".join(text.removesuffix("\n").removesuffix("\n...").split())
    return text if len(text) <= 80 else text[:77] + "..."


def _kind(kind: Any, info: FieldInfo) -> str:
    if get_origin(kind) is Literal:
        return either(get_args(kind))
    if get_origin(kind) is tuple:
        first, *_, last = get_args(kind)
        if last is Ellipsis:
            return f"a list of {either(get_args(first))}"
        return f"a list of {len(get_args(kind))} numbers"
    section = section_of(info)
    if section is not None:
        keys = ", ".join(section.model_fields)
        return f"a list of sections with {keys}" if get_origin(kind) is list else f"a section with {keys}"
    words = {bool: "true or false", int: "a whole number", float: "a number", str: "text", Path: "a path"}
    return " ".join([words[kind], " and ".join(_bounds(info))]).strip()


def _bounds(info: FieldInfo) -> list[str]:
    return [f"{sign} {getattr(rule, name):g}" for rule in info.metadata for kind, (sign, name) in SIGNS.items()
            if isinstance(rule, kind)]  # fmt: skip


def _names_in(section: str) -> list[str]:
    """Keys of a section; `` is the top."""
    if not section:
        return list(Config.model_fields)
    prefix = _pattern(section) + "."
    return [key.removeprefix(prefix) for key in fields() if key.startswith(prefix) and "." not in key[len(prefix) :]]


def _pattern(key: str) -> str:
    return ".".join("*" if part.isdigit() else part for part in key.split("."))


def _join(parent: str, leaf: str) -> str:
    return f"{parent}.{leaf}" if parent else leaf
