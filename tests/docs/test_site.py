"""The documentation's site: builds without a warning, as CI builds it, and asks nothing of anybody else."""

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import typer
import yaml

from comparison.study_file import StudyFile
from configs import describe
from configs.sites import Site
from launcher.cli import app
from tests.docs.documents import ROOT

DOCS = ROOT / "docs"
LOADED = re.compile(r"<(?:script|img|iframe|source)\b[^>]*\bsrc=\"?(https?:)?//|<link\b[^>]*\bhref=\"?(https?:)?//")
"""Something that a browser fetches when it shows a page; a link waits to be clicked."""


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site, built with warnings as errors; fails with what mkdocs says."""
    folder = tmp_path_factory.mktemp("site")
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(folder)],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT), "NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


def test_every_page_is_there_and_loads_nothing_from_elsewhere(site: Path) -> None:
    for page in (path for path in DOCS.rglob("*.md") if "hooks" not in path.parts):
        name = "index.html" if page.name in ("README.md", "index.md") else f"{page.stem}.html"
        assert (site / page.relative_to(DOCS).parent / name).is_file(), page
    for page in site.rglob("*.html"):
        if page.name != "report.html":  # a report is one file of its own
            text = page.read_text(encoding="utf-8")
            found = LOADED.search(text)
            assert found is None, f"{page.relative_to(site)} loads {found and found.group()}"
            assert 'class="mermaid"' not in text, f"{page.relative_to(site)}: mermaid is loaded from a CDN; draw an SVG"


def test_what_is_loaded_from_elsewhere_is_seen() -> None:
    assert LOADED.search('<link rel="stylesheet" href="https://fonts.example/css">')
    assert LOADED.search("<script async src=//cdn.example/x.js></script>")
    assert not LOADED.search('<a href="https://example.org">x</a> <img src="images/x.png">')


def test_every_page_is_in_the_navigation() -> None:
    named = set(_pages(yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))["nav"]))
    pages = {path.relative_to(DOCS).as_posix() for path in DOCS.rglob("*.md")}
    assert {page for page in named if not page.startswith("project/")} == pages


def test_the_reference_has_every_key_and_every_command(site: Path) -> None:
    text = (site / "configuration.html").read_text(encoding="utf-8")
    leaves = [key for key, info in describe.fields().items() if describe.section_of(info) is None]
    for key in [*leaves, *StudyFile.model_fields, *Site.model_fields["resources"].default.model_fields]:
        assert re.search(rf"id=\"?\w+\.(resources\.)?{re.escape(key)}\"?", text) or f">{key}" in text, key
    commands = (site / "commands.html").read_text(encoding="utf-8")
    for name in typer.main.get_group(app).commands:
        assert f"Usage: steadytrain {name} " in commands


def test_links_out_of_the_docs_lead_to_pages(site: Path) -> None:
    for page in ("index", "CONTRIBUTING", "configs/schema.py", "configs/sites/cpu.yaml", "examples/index"):
        assert (site / "project" / f"{page}.html").is_file(), page


def _pages(entries: list[object] | object) -> Iterator[str]:
    """The pages of a navigation."""
    if isinstance(entries, str):
        yield entries
    elif isinstance(entries, dict):
        for value in entries.values():
            yield from _pages(value)
    elif isinstance(entries, list):
        for value in entries:
            yield from _pages(value)
