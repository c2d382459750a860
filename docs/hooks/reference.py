"""Reference pages made when the site is built, from what the program itself reads: its typed configuration and its
command line. A page says where with `<!-- reference: model -->`.
"""

import re
from collections.abc import Iterator
from typing import get_origin

import typer
from mkdocs.exceptions import PluginError
from mkdocs.structure.pages import Page
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from comparison.study_file import ALLOWED, StudyFile
from configs import describe
from configs.schema import Config
from configs.sites import Site
from launcher.cli import app

PLACE = re.compile(r"^<!-- reference: (?P<what>\w+) -->$", re.MULTILINE)
COLUMNS = 100
"""Width of a command's help."""


def on_page_markdown(markdown: str, page: Page, **_: object) -> str:
    """Put references where a page asks for them."""
    return PLACE.sub(lambda place: made(place["what"], page.file.src_uri), markdown)


def made(what: str, page: str) -> str:
    """A reference as Markdown."""
    makers = {
        "configuration": lambda: "\n".join(_sections(Config, "")),
        "study": lambda: "\n".join(_sections(StudyFile, "")),
        "site": lambda: "\n".join(_sections(Site, "")),
        "commands": lambda: "\n".join(_commands()),
    }
    if what not in makers:
        raise PluginError(f"{page}: reference: {what}: must be {describe.either(makers)}")
    return makers[what]()


def _sections(model: type[BaseModel], prefix: str) -> Iterator[str]:
    """The keys of a section as a table, then its sections, each under a heading of its own."""
    plain = {name: info for name, info in model.model_fields.items() if describe.section_of(info) is None}
    if plain:
        yield from ["", "| key | default | must be | what it does |", "|---|---|---|---|"]
        yield from (_row(model, f"{prefix}{name}", info) for name, info in plain.items())
    for name, info in model.model_fields.items():
        section = describe.section_of(info)
        if section is None:
            continue
        entry = " (a list)" if get_origin(info.annotation) is list else ""
        yield f"\n{'###' if not prefix else '####'} {prefix}{name}{entry}\n"
        yield info.description or _own_docstring(section)
        yield from _sections(section, f"{prefix}{name}.*." if entry else f"{prefix}{name}.")


def _row(model: type[BaseModel], key: str, info: FieldInfo) -> str:
    cells = [
        f'<span id="{model.__name__}.{key}"></span>`{key}`',
        _default(info),
        _allowed(model, key, info),
        _meaning(info),
    ]
    return "| " + " | ".join(cells) + " |"


def _default(info: FieldInfo) -> str:
    if info.is_required():
        return "**must be set**"
    default = info.get_default(call_default_factory=True)
    return f"`{describe.shown(list(default) if isinstance(default, tuple) else default)}`"


def _allowed(model: type[BaseModel], key: str, info: FieldInfo) -> str:
    if model is StudyFile:
        words = ALLOWED[key]
    elif get_origin(info.annotation) in (list, dict):
        words = "a list of texts" if get_origin(info.annotation) is list else "names with their values"
    else:
        words = describe.allowed(info)
    return _cell(words.removeprefix("must be ").removesuffix(" or null"))


def _meaning(info: FieldInfo) -> str:
    if not info.description:
        raise PluginError(f"{info!r}: a field without a docstring")
    return _cell(info.description)


def _cell(text: str) -> str:
    """A text as one cell: what Markdown would take for a sign is escaped, except within `code`."""
    parts = " ".join(text.split()).replace("|", "\\|").split("`")
    outside = [part.replace("<", "&lt;").replace("*", "\\*") for part in parts[::2]]
    return "`".join(outside[i // 2] if i % 2 == 0 else part for i, part in enumerate(parts))


def _own_docstring(section: type[BaseModel]) -> str:
    return " ".join((section.__dict__.get("__doc__") or "").split())


def _commands() -> Iterator[str]:
    """Every command with its help, as `steadytrain COMMAND --help` prints it."""
    group = typer.main.get_group(app)
    parent = group.context_class(group, info_name="steadytrain")
    for name, command in group.commands.items():
        context = command.context_class(command, info_name=name, parent=parent, terminal_width=COLUMNS)
        yield f"\n### {name}\n\n```text\n{command.get_help(context)}\n```"
