"""Pictures of losses over learning rates: curves with intervals, LR sensitivity."""

import math
import statistics

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, NullLocator

from comparison.analysis import PLATEAU_NATS, RecipeResult, StudyResult
from comparison.palette import Palette, in_order
from monitoring.style import Theme, end_labels, lr_text

COLUMNS = 4  # recipes side by side where each has a panel


def loss_over_learning_rate(part: StudyResult, theme: Theme) -> Figure:
    """Loss against learning rate: a line per recipe, or where they are many a panel per recipe."""
    if Palette(part, theme).crowded:
        return _panel_per_recipe(part, theme)
    figure = Figure(figsize=(9.2, 4.8))
    draw_losses(figure.subplots(), part, theme)
    return figure


def _panel_per_recipe(part: StudyResult, theme: Theme) -> Figure:
    """Each recipe in colour before all others in grey, best first."""
    recipes, palette = in_order(part), Palette(part, theme)
    columns = min(COLUMNS, len(recipes))
    rows = math.ceil(len(recipes) / columns)
    figure = Figure(figsize=(2.55 * columns, 2.15 * rows + 0.5))
    grid = figure.subplots(rows, columns, squeeze=False, sharex=True, sharey=True)
    low, high = common_range(recipes)
    for index, axes in enumerate(grid.flat):
        if index >= len(recipes):
            axes.set_visible(False)
            continue
        for recipe in recipes:
            rates, means = _curve(recipe)
            axes.plot(rates, means, color=theme.grid, linewidth=1, zorder=1)
        recipe = recipes[index]
        colour = palette.colour(recipe.recipe) if palette.is_prominent(recipe.recipe) else theme.lines[2]
        axes.set_ylim(low, high)
        _draw_curve(axes, recipe, colour, "o", theme, highest=high)
        for lr, estimate in recipe.losses.items():
            if estimate.mean > high:
                axes.plot([lr], [0.97], "^", color=colour, markersize=7, transform=axes.get_xaxis_transform())
        baseline = " (baseline)" if recipe is part.baseline else ""
        axes.set_title(f"{recipe.recipe}{baseline}", color=colour, fontsize=9.5)
        axes.annotate(
            f"{recipe.best_loss.mean:.3f} at {lr_text(recipe.best_lr)}",
            (0.03, 0.95), xycoords="axes fraction", ha="left", va="top", fontsize=8.5, color=theme.ink, zorder=6,
            bbox={"facecolor": theme.paper, "edgecolor": "none", "alpha": 0.75, "pad": 1},
        )  # fmt: skip
        _rate_axis(axes, part, every=2)
        axes.tick_params(labelbottom=index + columns >= len(recipes))
    figure.supylabel("validation loss, nats per token", fontsize=9.5, color=theme.muted)
    figure.supxlabel(
        "learning rate; grey: the other recipes; triangle: a loss above the picture", fontsize=9.5, color=theme.muted
    )
    return figure


def common_range(recipes: list[RecipeResult]) -> tuple[float, float]:
    """Losses that the panels show: from the lowest up to three times as far as the median, so that what diverged does
    not flatten all other curves."""
    losses = [
        estimate.mean for recipe in recipes for estimate in recipe.losses.values() if math.isfinite(estimate.mean)
    ]
    low = min(losses, default=0.0)
    high = min(max(losses, default=1.0), low + 3 * (statistics.median(losses or [1.0]) - low))
    room = max(high - low, 1e-3)
    return low - 0.1 * room, high + 0.3 * room


def draw_losses(axes: Axes, part: StudyResult, theme: Theme, limits: tuple[float, float] | None = None) -> None:
    """All recipes in one panel, their plateaus as bands under the lines, bootstrap intervals as whiskers; of losses
    within `limits`, if they are given."""
    highest = math.inf if limits is None else limits[1]
    palette, ends = Palette(part, theme), []
    for recipe in part.recipes.values():
        colour = palette.colour(recipe.recipe)
        rates, means = _curve(recipe)
        if not palette.is_prominent(recipe.recipe):
            axes.plot(rates, means, color=colour, alpha=palette.alpha(recipe.recipe), linewidth=1, zorder=1)
            continue
        low, high = recipe.plateau
        inside = [index for index, lr in enumerate(rates) if low <= lr <= high]
        band = [[values[index] for index in inside] for values in (rates, means)]
        axes.plot(*band, color=colour, linewidth=13, alpha=0.18, zorder=1)
        _draw_curve(axes, recipe, colour, palette.marker(recipe.recipe), theme, highest)
        ends.append((recipe.recipe, rates[-1], means[-1], colour))
    _rate_axis(axes, part)
    axes.set_ylabel("validation loss, nats per token")
    if limits is None:
        axes.margins(y=0.12)
        axes.autoscale_view()
    else:
        axes.set_ylim(limits)
    end_labels(axes, [end for end in ends if math.isfinite(end[2])])
    note = (
        "cross: attention collapsed"
        if any(trial.collapsed for trial in part.trials)
        else "no trial's attention collapsed"
    )
    grey = "; grey: the other recipes" if palette.crowded else ""
    axes.set_xlabel(f"learning rate\n{note}; band: within {PLATEAU_NATS} of the recipe's best{grey}", loc="left")


def sensitivity_bars(part: StudyResult, theme: Theme) -> Figure:
    """LR sensitivity, a bar per recipe with its bootstrap interval; shorter is better."""
    recipes, palette = in_order(part), Palette(part, theme)
    figure = Figure(figsize=(9.2, 0.9 + (0.3 if palette.crowded else 0.55) * len(recipes)))
    axes = figure.subplots()
    for row, recipe in enumerate(recipes):
        value = recipe.lr_sensitivity
        if not math.isfinite(value.mean):
            continue
        low, high = value.interval or (value.mean, value.mean)
        colour, alpha = palette.colour(recipe.recipe), palette.alpha(recipe.recipe)
        whisker = [[value.mean - low], [high - value.mean]] if value.interval else None
        axes.barh(row, value.mean, color=colour, alpha=alpha, height=0.62, xerr=whisker, error_kw={"ecolor": theme.ink})
        axes.annotate(
            f"{'≤ ' if value.bound else ''}{value.mean:.3f}",
            (high, row), xytext=(6, 0), textcoords="offset points", va="center", fontweight="bold",
        )  # fmt: skip
    axes.set_yticks(range(len(recipes)), [recipe.recipe for recipe in recipes])
    axes.tick_params(axis="y", labelcolor=theme.ink, labelsize=10)
    axes.set_ylim(len(recipes) - 0.4, -0.6)
    axes.grid(axis="y", visible=False)
    axes.spines["bottom"].set_visible(False)
    axes.margins(x=0.12)
    axes.set_xlabel("LR sensitivity: mean distance from the best loss over the grid, nats (shorter is better)")
    return figure


def _curve(recipe: RecipeResult) -> tuple[list[float], list[float]]:
    return list(recipe.losses), [estimate.mean for estimate in recipe.losses.values()]


def _draw_curve(
    axes: Axes, recipe: RecipeResult, colour: str, marker: str, theme: Theme, highest: float = math.inf
) -> None:
    """One recipe's curve with whiskers; a cross where a trial's attention collapsed; no marks above `highest`."""
    rates, means = _curve(recipe)
    axes.plot(rates, means, color=colour, zorder=2)
    ends = [
        (lr, estimate.mean, estimate.interval)
        for lr, estimate in recipe.losses.items()
        if estimate.interval and estimate.mean <= highest
    ]
    if ends:
        below = [mean - interval[0] for _, mean, interval in ends]
        above = [interval[1] - mean for _, mean, interval in ends]
        axes.errorbar(
            [lr for lr, _, _ in ends],
            [mean for _, mean, _ in ends],
            [below, above],
            color=colour,
            fmt="none",
            capsize=3,
        )
    collapsed = {trial.lr for trial in recipe.collapsed}
    for lr, mean in zip(rates, means, strict=True):
        if mean <= highest:
            mark(axes, lr, mean, lr in collapsed, marker, colour, theme)


def mark(axes: Axes, x: float, y: float, collapsed: bool, marker: str, colour: str, theme: Theme) -> None:
    """A point of a curve, or the cross of a collapse."""
    axes.plot(
        [x], [y], marker="X" if collapsed else marker, markersize=12 if collapsed else 7, color=colour,
        markeredgecolor=theme.paper, markeredgewidth=1.4, zorder=5 if collapsed else 4, clip_on=False,
    )  # fmt: skip


def _rate_axis(axes: Axes, part: StudyResult, every: int = 1) -> None:
    rates = part.record.learning_rates
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(FixedLocator(rates))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xticks(rates, [lr_text(lr) if index % every == 0 else "" for index, lr in enumerate(rates)])
