"""Figures of the examples, light and dark."""

from collections.abc import Callable
from pathlib import Path

import matplotlib
from matplotlib.figure import Figure

from monitoring.style import DARK, LIGHT, Theme

DPI = 110


def write_figure(make: Callable[[Theme], Figure], folder: Path, name: str) -> list[Path]:
    """Write `name`.png and `name`-dark.png into `folder`, which is made if need be."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for theme, suffix in ((LIGHT, ""), (DARK, "-dark")):
        path = folder / f"{name}{suffix}.png"
        with matplotlib.rc_context(theme.rc):
            make(theme).savefig(path, format="png", dpi=DPI)
        paths.append(path)
    return paths
