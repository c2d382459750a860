"""Pictures of a study with shapes: the loss curves of each, and the best learning rate against width."""

import math

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, NullLocator

from comparison.analysis import Analysis
from comparison.loss_plots import common_range, draw_losses
from comparison.palette import Palette
from comparison.scaling import lr_scaling
from monitoring.style import Theme, end_labels, lr_text

COLUMNS = 3


def loss_per_shape(analysis: Analysis, theme: Theme) -> Figure | None:
    """Loss against learning rate, a panel per shape."""
    parts = analysis.with_results
    if len(parts) < 2:
        return None
    columns = min(COLUMNS, len(parts))
    rows = math.ceil(len(parts) / columns)
    figure = Figure(figsize=(5.2 * columns, 4.4 * rows))
    panels = figure.subplots(rows, columns, squeeze=False, sharey=True)
    limits = common_range([recipe for part in parts.values() for recipe in part.recipes.values()])
    for axes, (shape, part) in zip(panels.flat, parts.items(), strict=False):
        draw_losses(axes, part, theme, limits)
        axes.set_title(shape)
    for axes in panels.flat[len(parts) :]:
        axes.set_visible(False)
    return figure


def best_rate_over_width(analysis: Analysis, theme: Theme) -> Figure | None:
    """Best learning rate (refined between grid points) against hidden size, both logarithmic; hollow where the best is
    at an end of the grid, so that the true one may lie beyond."""
    found = lr_scaling(analysis)
    if not found:
        return None
    palette = Palette(next(iter(analysis.with_results.values())), theme)
    figure = Figure(figsize=(7.6, 4.6))
    axes = figure.subplots()
    ends = []
    for scaling in found:
        colour, alpha = palette.colour(scaling.recipe), palette.alpha(scaling.recipe)
        widths = sorted(scaling.best)
        rates = [scaling.best[width] for width in widths]
        fill = theme.paper if scaling.at_end else colour
        axes.plot(widths, rates, "o", color=colour, alpha=alpha, markerfacecolor=fill, markersize=8)
        line = np.exp(np.polyval(np.polyfit(np.log(widths), np.log(rates), 1), np.log(widths)))
        axes.plot(widths, line, color=colour, alpha=alpha, linewidth=1.6)
        if palette.is_prominent(scaling.recipe):
            move = "at an end of the grid" if scaling.at_end else f"exponent {scaling.exponent:.2f}"
            ends.append((f"{scaling.recipe} ({move})", widths[-1], rates[-1], colour))
    every = sorted({width for scaling in found for width in scaling.best})
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.xaxis.set_major_locator(FixedLocator(every))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xticks(every, [str(width) for width in every])
    axes.set_xlabel("hidden size")
    grid = analysis.record.learning_rates
    axes.set_ylim(0.7 * min(grid), 1.4 * max(grid))  # the whole of it: what moved, and whether to an end
    axes.yaxis.set_minor_locator(NullLocator())
    axes.set_yticks(grid, [lr_text(lr) for lr in grid])
    axes.set_ylabel("best learning rate")
    end_labels(axes, ends)
    return figure
