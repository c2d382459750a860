"""The pictures of a study, each a function from the analysed study and a theme to a matplotlib `Figure`.

A cross marks collapse everywhere: on a curve over learning rates the trial that collapsed, on a curve over steps the
step at which it did.
"""

import math
from collections.abc import Callable, Iterator

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, MaxNLocator, NullLocator
from numpy.typing import NDArray

from comparison import verdict
from comparison.analysis import PLATEAU_NATS, StudyResult
from comparison.trial_result import LOGIT_ALARM, TrialResult
from monitoring.style import LIGHT, MARKERS, Theme, end_labels, lr_text

Series = NDArray[np.float64]
SeriesOf = Callable[[TrialResult], Series]
COLUMNS = 4  # learning rates side by side in the grid of time series


def figures(result: StudyResult, theme: Theme = LIGHT) -> dict[str, Figure]:
    """Every picture that the study's data allows, by file stem; the first is the one to show to a stranger."""
    makers: dict[str, Callable[[StudyResult, Theme], Figure | None]] = {
        "collapse-and-cure": collapse_and_cure,
        "loss-vs-learning-rate": loss_over_learning_rate,
        "attention-over-steps": attention_over_steps,
        "entropy-per-head": entropy_per_head,
        "learning-rate-sensitivity": sensitivity_bars,
    }
    with matplotlib.rc_context(theme.rc):
        made = {name: make(result, theme) for name, make in makers.items()}
    return {name: figure for name, figure in made.items() if figure is not None}


def collapse_and_cure(result: StudyResult, theme: Theme) -> Figure | None:
    """Three panels: loss over learning rates; attention entropy and largest logit over steps at one telling rate."""
    lr = result.telling_lr
    if lr is None:
        return None
    figure = Figure(figsize=(13.6, 4.7))
    figure.suptitle(verdict.headline(result, lr), x=0.006, ha="left", fontsize=14, fontweight="bold")
    left, middle, right = figure.subplots(1, 3, width_ratios=[1.15, 1, 1])
    _draw_losses(left, result, theme)
    left.set_title("Final loss at each learning rate")
    _draw_ratio(middle, result, lr, theme, labels=True)
    middle.set_title(f"Attention entropy at {lr_text(lr)}")
    middle.set_ylabel("share of its maximum (0 %: one token only)")
    _draw_logit(right, result, lr, theme, labels=True)
    right.set_title(f"Largest attention logit at {lr_text(lr)}")
    return figure


def loss_over_learning_rate(result: StudyResult, theme: Theme) -> Figure:
    """Loss against learning rate, a line per recipe, its plateau as a band under the line."""
    figure = Figure(figsize=(9.2, 4.8))
    axes = figure.subplots()
    _draw_losses(axes, result, theme)
    return figure


def attention_over_steps(result: StudyResult, theme: Theme) -> Figure | None:
    """Small multiples: a column per learning rate, entropy above and largest logit below."""
    grid = [lr for lr in result.record.learning_rates if any(t.step_S.size for t in result.trials if t.lr == lr)]
    if not grid:
        return None
    columns = min(COLUMNS, len(grid))
    blocks = math.ceil(len(grid) / columns)
    figure = Figure(figsize=(3.1 * columns + 1.2, 4.9 * blocks))
    axes = figure.subplots(2 * blocks, columns, squeeze=False)
    for empty in axes.flat:
        empty.set_visible(False)
    logits = [t.worst_logit for t in result.trials if math.isfinite(t.worst_logit)]
    for index, lr in enumerate(grid):
        row, column = 2 * (index // columns), index % columns
        last = column == columns - 1 or index == len(grid) - 1
        upper, lower = axes[row, column], axes[row + 1, column]
        upper.set_visible(True)
        lower.set_visible(True)
        upper.set_title(f"learning rate {lr_text(lr)}")
        _draw_ratio(upper, result, lr, theme, labels=last)
        _draw_logit(lower, result, lr, theme, labels=last)
        if logits:
            lower.set_ylim(1, max(3 * LOGIT_ALARM, 3 * max(logits)))
        upper.set_xlabel("")
        lower.set_title("")
        if column == 0:
            upper.set_ylabel("attention entropy\nshare of its maximum")
            lower.set_ylabel("largest attention logit")
        else:
            upper.set_yticklabels([])
            lower.set_yticklabels([])
    return figure


def entropy_per_head(result: StudyResult, theme: Theme) -> Figure | None:
    """Every head over steps, dark = collapsed: the worst trial beside the steadiest one at the same learning rate."""
    pair = worst_and_best(result)
    if pair is None:
        return None
    figure = Figure(figsize=(11.5, 0.8 + 0.22 * max(_heads(trial) for trial in pair)))
    all_axes = figure.subplots(1, 2, sharey=True)
    for axes, trial in zip(all_axes, pair, strict=True):
        steps, layers, heads = trial.head_ratio_SLN.shape
        image = axes.pcolormesh(
            _edges(trial.head_step_S),
            np.arange(layers * heads + 1),
            trial.head_ratio_SLN.reshape(steps, -1).T,
            cmap="cividis",
            vmin=0,
            vmax=1,
            rasterized=True,
        )
        axes.grid(False)
        axes.set_yticks([(layer + 0.5) * heads for layer in range(layers)], [f"layer {n}" for n in range(layers)])
        for layer in range(1, layers):
            axes.axhline(layer * heads, color=theme.paper, linewidth=1.5)
        axes.set_xlabel("step")
        what = f"collapsed at step {trial.collapse_step}" if trial.collapsed else "no collapse"
        axes.set_title(f"{trial.recipe}, {lr_text(trial.lr)}: {what}", color=_colour(result, trial.recipe, theme))
        if trial.collapse_step is not None:
            axes.axvline(trial.collapse_step, color="#ffffff", linewidth=1.4, linestyle=(0, (4, 2)))
    bar = figure.colorbar(image, ax=all_axes, pad=0.015, aspect=28)
    bar.outline.set_visible(False)
    bar.set_label("head's entropy, share of the maximum")
    return figure


def sensitivity_bars(result: StudyResult, theme: Theme) -> Figure:
    """LR sensitivity, a bar per recipe; shorter is better."""
    recipes = list(result.recipes.values())
    figure = Figure(figsize=(9.2, 0.9 + 0.55 * len(recipes)))
    axes = figure.subplots()
    for row, recipe in enumerate(recipes):
        colour = _colour(result, recipe.recipe, theme)
        value = recipe.lr_sensitivity
        axes.barh(row, value.mean, color=colour, height=0.62, xerr=value.sd, error_kw={"ecolor": theme.ink})
        axes.annotate(
            f"{value:.3f}",
            (value.mean + (value.sd or 0), row),
            xytext=(6, 0),
            textcoords="offset points",
            va="center",
            fontweight="bold",
        )
    axes.set_yticks(range(len(recipes)), [recipe.recipe for recipe in recipes])
    axes.tick_params(axis="y", labelcolor=theme.ink, labelsize=10)
    axes.invert_yaxis()
    axes.grid(axis="y", visible=False)
    axes.spines["bottom"].set_visible(False)
    axes.margins(x=0.12)
    axes.set_xlabel("LR sensitivity: mean distance from the best loss over the grid, nats (shorter is better)")
    return figure


def worst_and_best(result: StudyResult) -> tuple[TrialResult, TrialResult] | None:
    """The collapsed trial of the highest learning rate, and the trial of lowest loss that did not collapse at that
    rate (at any, if none there). None where there is no such pair with per-head arrays."""
    with_heads = [trial for trial in result.trials if trial.head_step_S.size > 1]
    collapsed = [trial for trial in with_heads if trial.collapsed]
    steady = [trial for trial in with_heads if not trial.collapsed and not math.isnan(trial.loss)]
    if not collapsed or not steady:
        return None
    worst = max(collapsed, key=lambda trial: trial.lr)
    return worst, min(steady, key=lambda trial: (trial.lr != worst.lr, trial.loss))


def _draw_losses(axes: Axes, result: StudyResult, theme: Theme) -> None:
    ends = []
    for recipe in result.recipes.values():
        colour = _colour(result, recipe.recipe, theme)
        grid = list(recipe.losses)
        means = [recipe.losses[lr].mean for lr in grid]
        low, high = recipe.plateau
        inside = [index for index, lr in enumerate(grid) if low <= lr <= high]
        axes.plot(
            [grid[i] for i in inside], [means[i] for i in inside], color=colour, linewidth=13, alpha=0.18, zorder=1
        )
        axes.plot(grid, means, color=colour, zorder=2)
        if any(recipe.losses[lr].sd is not None for lr in grid):
            axes.errorbar(grid, means, [recipe.losses[lr].sd or 0 for lr in grid], color=colour, fmt="none", capsize=3)
        for lr, mean in zip(grid, means, strict=True):
            collapsed = any(trial.collapsed for trial in result.of(recipe.recipe, lr))
            _mark(axes, lr, mean, collapsed, _marker(result, recipe.recipe), colour, theme)
        ends.append((recipe.recipe, grid[-1], means[-1], colour))
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(FixedLocator(result.record.learning_rates))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xticks(result.record.learning_rates, [lr_text(lr) for lr in result.record.learning_rates])
    axes.set_ylabel("validation loss, nats per token")
    axes.margins(y=0.12)
    axes.autoscale_view()
    end_labels(axes, ends)
    note = "cross: attention collapsed" if any(trial.collapsed for trial in result.trials) else "no trial collapsed"
    axes.set_xlabel(f"learning rate\n{note}; band: within {PLATEAU_NATS} of the recipe's best", loc="left")


def _draw_ratio(axes: Axes, result: StudyResult, lr: float, theme: Theme, *, labels: bool) -> None:
    for recipe, trials in _lines(result, lr):
        colour = _colour(result, recipe, theme)
        for trial in trials:
            axes.plot(trial.step_S, trial.entropy_ratio_S, color=colour, linewidth=_width(result))
        collapsed = [trial for trial in trials if trial.collapsed]
        for trial in collapsed:
            _mark_collapse(axes, trial, trial.entropy_ratio_S, colour, theme)
        if collapsed:
            last = max(collapsed, key=lambda trial: trial.collapse_step or 0)
            late = (last.collapse_step or 0) > 0.6 * result.record.steps
            axes.annotate(
                f"collapsed\nat {verdict.steps_of(collapsed)}",
                (last.collapse_step, _at(last, last.entropy_ratio_S)),
                xytext=(-4, 22) if late else (9, 9),
                textcoords="offset points",
                color=colour,
                fontsize=9,
                ha="right" if late else "left",
                va="bottom",
            )
    axes.set_ylim(0, 1.04)
    axes.set_yticks([0, 0.25, 0.5, 0.75, 1.0], ["0 %", "25 %", "50 %", "75 %", "100 %"])
    _step_axis(axes, result)
    if labels:
        _label_ends(axes, result, lr, theme, lambda trial: trial.entropy_ratio_S)


def _draw_logit(axes: Axes, result: StudyResult, lr: float, theme: Theme, *, labels: bool) -> None:
    for recipe, trials in _lines(result, lr):
        colour = _colour(result, recipe, theme)
        for trial in trials:
            axes.plot(trial.step_S, trial.max_logit_S, color=colour, linewidth=_width(result))
            if trial.collapsed:
                _mark_collapse(axes, trial, trial.max_logit_S, colour, theme)
    axes.set_yscale("log")
    axes.yaxis.set_minor_locator(NullLocator())
    axes.axhline(LOGIT_ALARM, color=theme.muted, linewidth=1, linestyle=(0, (4, 3)))
    axes.annotate(
        f"alarm: {LOGIT_ALARM:,.0f}",
        (1, LOGIT_ALARM),
        xycoords=("axes fraction", "data"),
        xytext=(-2, -3),
        textcoords="offset points",
        color=theme.muted,
        fontsize=8.5,
        ha="right",
        va="top",
    )
    _step_axis(axes, result)
    highest = [trial.worst_logit for _, trials in _lines(result, lr) for trial in trials]
    axes.set_ylim(1, max([3 * LOGIT_ALARM, *(3 * logit for logit in highest if math.isfinite(logit))]))
    if labels:
        _label_ends(axes, result, lr, theme, lambda trial: trial.max_logit_S)


def _lines(result: StudyResult, lr: float) -> Iterator[tuple[str, list[TrialResult]]]:
    """Recipes with their trials of one learning rate that have a series."""
    for recipe in result.record.recipes:
        trials = [trial for trial in result.of(recipe, lr) if trial.step_S.size]
        if trials:
            yield recipe, trials


def _label_ends(axes: Axes, result: StudyResult, lr: float, theme: Theme, values_S: SeriesOf) -> None:
    ends = [
        (recipe, float(trials[-1].step_S[-1]), float(values_S(trials[-1])[-1]), _colour(result, recipe, theme))
        for recipe, trials in _lines(result, lr)
    ]
    end_labels(axes, [end for end in ends if math.isfinite(end[2])])


def _mark_collapse(axes: Axes, trial: TrialResult, values_S: Series, colour: str, theme: Theme) -> None:
    assert trial.collapse_step is not None, "only collapsed trials are marked"
    _mark(axes, trial.collapse_step, _at(trial, values_S), True, "X", colour, theme)


def _at(trial: TrialResult, values_S: Series) -> float:
    """The value of a series at the step of collapse."""
    return float(np.interp(trial.collapse_step or 0, trial.step_S, values_S))


def _width(result: StudyResult) -> float:
    return 2.0 if result.single_seed else 1.1


def _step_axis(axes: Axes, result: StudyResult) -> None:
    axes.set_xlim(0, result.record.steps)
    axes.xaxis.set_major_locator(MaxNLocator(4, integer=True, steps=[1, 2, 5, 10]))
    axes.set_xlabel("step")


def _mark(axes: Axes, x: float, y: float, collapsed: bool, marker: str, colour: str, theme: Theme) -> None:
    axes.plot(
        [x],
        [y],
        marker="X" if collapsed else marker,
        markersize=12 if collapsed else 7,
        color=colour,
        markeredgecolor=theme.paper,
        markeredgewidth=1.4,
        zorder=5 if collapsed else 4,
        clip_on=False,
    )


def _colour(result: StudyResult, recipe: str, theme: Theme) -> str:
    return theme.lines[list(result.record.recipes).index(recipe) % len(theme.lines)]


def _marker(result: StudyResult, recipe: str) -> str:
    return MARKERS[list(result.record.recipes).index(recipe) % len(MARKERS)]


def _heads(trial: TrialResult) -> int:
    return trial.head_ratio_SLN.shape[1] * trial.head_ratio_SLN.shape[2]


def _edges(step_S: NDArray[np.int64]) -> Series:
    """Borders of the cells around S steps: S + 1 values."""
    middle = (step_S[1:] + step_S[:-1]) / 2
    return np.concatenate([[step_S[0]], middle, [step_S[-1]]])
