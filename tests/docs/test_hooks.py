"""What the site's hooks make of links, docstrings and fields."""

import importlib.util
from types import ModuleType, SimpleNamespace

import pytest

from tests.docs.documents import ROOT


def hook(name: str) -> ModuleType:
    """A file of docs/hooks, as mkdocs imports it."""
    spec = importlib.util.spec_from_file_location(name, ROOT / "docs/hooks" / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    ("page", "written", "made"),
    [
        ("slurm.md", "[a](checkpoints.md#x)", "[a](checkpoints.md#x)"),
        ("slurm.md", "[a](../cluster/README.md#what)", "[a](project/cluster/README.md#what)"),
        ("slurm.md", "[a](../configs/sites.py)", "[a](project/configs/sites.py.md)"),
        ("project/README.md", "![a](docs/images/a.png)", "![a](../images/a.png)"),
        ("project/examples/x/README.md", "[a](../../docs/slurm.md)", "[a](../../../slurm.md)"),
        ("slurm.md", "[a](https://example.org/x.md) [b](#here)", "[a](https://example.org/x.md) [b](#here)"),
    ],
)
def test_links_are_right_in_the_site(page: str, written: str, made: str) -> None:
    shown = SimpleNamespace(file=SimpleNamespace(src_uri=page))
    assert hook("outside").on_page_markdown(written, shown) == made


def test_a_docstring_has_a_paragraph_for_what_is_looked_up() -> None:
    made = hook("docstrings").paragraphs("Reads it. Raises: DataError.\nShapes: x (B, T).\nSource: Zhai, eq. 2.")
    assert made == "Reads it.\n\n**Raises**: DataError.\n\n**Shapes**: x (B, T).\n\n**Source**: Zhai, eq. 2."


def test_a_cell_keeps_code_and_escapes_the_rest() -> None:
    assert hook("reference")._cell("a * b | `<dir>/*` < c") == r"a \* b \| `<dir>/*` &lt; c"
