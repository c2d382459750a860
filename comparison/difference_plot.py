"""Differences with the intervals that the verdict follows: a filled dot is one that is shown, a hollow one is not."""

import math
import statistics
from collections.abc import Callable, Iterable, Mapping

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from comparison.analysis import StudyResult
from comparison.palette import Palette
from comparison.ranking import rank
from comparison.statistics import SMALLEST_NATS, Difference
from monitoring.style import Theme

Panels = Mapping[str, Mapping[str, Difference]]
"""Title of a panel to its differences by recipe."""


def differences_from_baseline(part: StudyResult, theme: Theme) -> Figure | None:
    """Best loss and LR sensitivity minus the baseline's; None for a single seed."""
    ranking, palette = rank(part), Palette(part, theme)
    panels = {
        "lowest loss minus the baseline's, nats": ranking.losses,
        "LR sensitivity minus the baseline's, nats": ranking.sensitivities,
    }
    return difference_panels(
        panels, theme, lambda name: palette.colour(name) if palette.is_prominent(name) else theme.lines[2]
    )


def difference_panels(panels: Panels, theme: Theme, colour_of: Callable[[str], str]) -> Figure | None:
    """A panel for each family of differences that is not empty, a row for each recipe, in the order of the first panel;
    None where all are empty."""
    panels = {title: family for title, family in panels.items() if family}
    if not panels:
        return None
    first = next(iter(panels.values()))
    names = sorted(first, key=lambda name: first[name].mean)
    figure = Figure(figsize=(5.2 * len(panels) + 1, 1.2 + 0.3 * len(names)))
    all_axes = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
    for axes, (title, family) in zip(all_axes, panels.items(), strict=True):
        reach = _reach(family.values())
        axes.axvspan(-SMALLEST_NATS, SMALLEST_NATS, color=theme.grid, linewidth=0, zorder=0)
        axes.axvline(0, color=theme.muted, linewidth=1)
        for row, name in enumerate(names):
            if name in family:
                _draw_difference(axes, row, family[name], reach, colour_of(name), theme)
        axes.set_xlim(-reach, reach)
        axes.set_xlabel(title)
        axes.xaxis.set_major_locator(MaxNLocator(5))
        axes.set_yticks(range(len(names)), names)
        axes.tick_params(axis="y", labelcolor=theme.ink, labelsize=9.5)
        axes.grid(axis="y", visible=False)
        axes.set_title("better", loc="left", fontsize=8.5, fontweight="normal")
        axes.set_title("worse", loc="right", fontsize=8.5, fontweight="normal")
    all_axes[0].set_ylim(len(names) - 0.4, -0.6)
    return figure


def _reach(family: Iterable[Difference]) -> float:
    """How far from 0 a panel of differences goes: few seeds give intervals, and divergence differences, that would
    leave no room for the others."""
    means = [abs(found.mean) for found in family]
    return 2 * SMALLEST_NATS + min(1.6 * max(means), 5 * statistics.median(means))


def _draw_difference(axes: Axes, row: int, found: Difference, reach: float, colour: str, theme: Theme) -> None:
    """A dot with its interval, filled if the difference is shown; a triangle at the edge for one beyond the panel."""
    fill = colour if found.shown else theme.paper
    axes.plot([found.low, found.high], [row, row], color=colour, linewidth=2, alpha=1 if found.shown else 0.5)
    beyond = abs(found.mean) > reach
    sign = math.copysign(1, found.mean)
    x, marker = (sign * 0.97 * reach, "<" if sign < 0 else ">") if beyond else (found.mean, "o")
    axes.plot([x], [row], marker, markersize=7, color=colour, markerfacecolor=fill, markeredgewidth=1.6)
    if beyond:
        align = "left" if sign < 0 else "right"
        axes.annotate(
            f"{found.mean:+.2f}", (x, row), xytext=(-9 * sign, 0), textcoords="offset points", va="center", ha=align
        )
