"""Links from pages to files outside docs/: right on GitHub as they are written, and right in the site.

A Markdown file that is linked becomes a page of the site, `project/<path>`, and so on from its own links; any other
file becomes a page that shows its text. Pages themselves stay as they are written.
"""

import posixpath
import re
from collections.abc import Iterator
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

LINK = re.compile(r"(?P<before>\]\()(?P<target>[^)\s#:]+)(?P<anchor>#[^)\s]*)?(?=\))")
ROOT = Path(__file__).parents[2]
DOCS = "docs"
PROJECT = "project"
ALWAYS = ("CONTRIBUTING.md", "CHANGELOG.md", "examples/README.md", "cluster/README.md")
"""Pages of the site, whether something links to them or not."""
LANGUAGES = {".py": "python", ".yaml": "yaml", ".json": "json"}


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add a page for every file outside docs/ that a page leads to."""
    todo = [*ALWAYS]
    for file in files.documentation_pages():
        todo += _outside(posixpath.join(DOCS, file.src_uri), file.content_string)
    done: set[str] = set()
    while todo:
        path = todo.pop()
        if path in done:
            continue
        done.add(path)
        text = _read(path)
        if path.endswith(".md"):
            todo += _outside(path, text)
        files.append(
            File.generated(config, page_of(path), content=text if path.endswith(".md") else _shown(path, text))
        )
    return files


def on_page_markdown(markdown: str, page: Page, **_: object) -> str:
    """Turn a page's links into links between pages of the site."""
    here = source_of(page.file.src_uri)

    def rewritten(link: re.Match[str]) -> str:
        target = page_of(posixpath.normpath(posixpath.join(posixpath.dirname(here), link["target"])))
        relative = posixpath.relpath(target, posixpath.dirname(page.file.src_uri) or ".")
        return f"{link['before']}{relative}{link['anchor'] or ''}"

    return LINK.sub(rewritten, markdown)


def page_of(path: str) -> str:
    """The site's page, or file, for a file of the repository: docs/x.md is x.md, y/z.py is project/y/z.py.md."""
    if path.startswith(f"{DOCS}/"):
        return path.removeprefix(f"{DOCS}/")
    return f"{PROJECT}/{path}" if path.endswith(".md") else f"{PROJECT}/{path}.md"


def source_of(uri: str) -> str:
    """The file of the repository that a page of the site comes from."""
    return uri.removeprefix(f"{PROJECT}/") if uri.startswith(f"{PROJECT}/") else f"{DOCS}/{uri}"


def _outside(path: str, text: str) -> Iterator[str]:
    """Files outside docs/ that a file of the repository links to."""
    for link in LINK.finditer(text):
        target = posixpath.normpath(posixpath.join(posixpath.dirname(path), link["target"]))
        if not target.startswith(f"{DOCS}/"):
            yield target


def _read(path: str) -> str:
    try:
        return (ROOT / path).read_text(encoding="utf-8")
    except OSError as error:
        raise PluginError(f"a page links to {path}: {error.strerror}") from None


def _shown(path: str, text: str) -> str:
    """A page that shows a file of code or configuration."""
    language = LANGUAGES.get(Path(path).suffix, "text")
    return f"# {path}\n\n````{language}\n{text}\n````\n"
