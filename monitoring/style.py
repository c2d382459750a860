"""How the pictures look: a palette that colour-blind readers can tell apart (Okabe and Ito 2008), light and dark, and
labels written beside the lines instead of a legend."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from matplotlib.axes import Axes

MARKERS = "osD^vP"


@dataclass(frozen=True)
class Theme:
    """Colours of one rendering."""

    paper: str
    ink: str
    muted: str
    grid: str
    lines: tuple[str, ...]

    @property
    def rc(self) -> dict[str, Any]:
        """Matplotlib settings."""
        return {
            "figure.facecolor": self.paper,
            "axes.facecolor": self.paper,
            "savefig.facecolor": self.paper,
            "axes.edgecolor": self.grid,
            "axes.grid": True,
            "axes.grid.which": "major",
            "axes.axisbelow": True,
            "grid.color": self.grid,
            "grid.linewidth": 0.6,
            "axes.spines.top": False,
            "axes.spines.right": False,
            "axes.labelcolor": self.muted,
            "axes.titlecolor": self.ink,
            "axes.titlelocation": "left",
            "axes.titlesize": 11,
            "axes.titleweight": "bold",
            "axes.labelsize": 9.5,
            "text.color": self.ink,
            "xtick.color": self.muted,
            "ytick.color": self.muted,
            "xtick.labelsize": 9,
            "ytick.labelsize": 9,
            "xtick.major.size": 0,
            "ytick.major.size": 0,
            "xtick.minor.size": 0,
            "ytick.minor.size": 0,
            "font.family": "sans-serif",
            "font.size": 9.5,
            "lines.linewidth": 2.0,
            "lines.solid_capstyle": "round",
            "figure.constrained_layout.use": True,
            "figure.constrained_layout.h_pad": 0.08,
            "figure.constrained_layout.w_pad": 0.08,
        }


LIGHT = Theme(
    paper="#ffffff",
    ink="#1c2128",
    muted="#59636e",
    grid="#dfe3e8",
    lines=("#d55e00", "#009e73", "#0072b2", "#b5588f", "#a67c00", "#4aa3d8"),
)
DARK = Theme(
    paper="#161b22",
    ink="#e6edf3",
    muted="#9aa5b1",
    grid="#30363d",
    lines=("#ff8c42", "#3ecf9f", "#58a6ff", "#e39ac8", "#e3b341", "#a5d6ff"),
)


def lr_text(lr: float) -> str:
    """A learning rate as an axis writes it: 3e-2."""
    mantissa, exponent = f"{lr:.6e}".split("e")
    return f"{mantissa.rstrip('0').rstrip('.')}e{int(exponent)}"


def end_labels(axes: Axes, labels: Iterable[tuple[str, float, float, str]], gap: float = 0.07) -> None:
    """Write each (text, x, y, colour) just right of its line's end, moved apart vertically where they would overlap.

    `gap` is the least distance as a share of the axes' height. Call it after the axes' limits are final.
    """
    to_axes = axes.transData + axes.transAxes.inverted()
    ends = sorted(((*to_axes.transform((x, y)), text, colour) for text, x, y, colour in labels), key=lambda end: end[1])
    heights = spread([min(max(y, 0.02), 0.98) for _, y, _, _ in ends], gap)
    for (x, _, text, colour), height in zip(ends, heights, strict=True):
        axes.annotate(
            text,
            (x, height),
            xycoords="axes fraction",
            xytext=(8, 0),
            textcoords="offset points",
            color=colour,
            fontweight="bold",
            va="center",
            annotation_clip=False,
        )


def spread(heights: Sequence[float], gap: float) -> list[float]:
    """Ascending heights moved as little as possible (least squares) until neighbours are `gap` apart.

    With i * gap taken off height i this is isotonic regression, solved by pooling adjacent violators.
    """
    pools: list[list[float]] = []
    for index, height in enumerate(heights):
        pools.append([height - index * gap])
        while len(pools) > 1 and fmean(pools[-2]) > fmean(pools[-1]):
            last = pools.pop()
            pools[-1] += last
    levels = [fmean(pool) for pool in pools for _ in pool]
    return [level + index * gap for index, level in enumerate(levels)]
