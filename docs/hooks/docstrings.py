"""Docstrings as Markdown: what starts with Shapes, Source or Raises begins a paragraph of its own."""

import re

from griffe import Extension, Object

NAMES = r"(Shapes?|Sources?|Raises|Returns|Memory)"
BEGINS = re.compile(rf"\n[ \t]*(?={NAMES}\b)|(?<=[.)]) (?={NAMES}:)|(?<=\.) (?=Raises\b)")
"""Where such a word begins a line, or a sentence."""
WORD = re.compile(rf"^{NAMES}\b:?", re.MULTILINE)


class Paragraphs(Extension):
    """Applied to every docstring that a page shows."""

    def on_object(self, *, obj: Object, **_: object) -> None:
        """Rewrite the docstring of an object that has just been read."""
        if obj.docstring is not None:
            obj.docstring.value = paragraphs(obj.docstring.value)


def paragraphs(docstring: str) -> str:
    """The docstring with a blank line before, and bold letters for, the words that say what to look up."""
    return WORD.sub(r"**\1**:", BEGINS.sub("\n\n", docstring))
