"""Pictures of attention over training: entropy and the largest logit of all trials, and head by head."""

import math
from collections.abc import Callable, Iterator

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, NullLocator

from comparison.analysis import StudyResult
from comparison.loss_plots import draw_losses, mark
from comparison.palette import Palette
from comparison.trial_result import LOGIT_ALARM, Series, Steps, TrialResult
from comparison.verdict import headline
from comparison.wording import collapse_steps
from monitoring.style import Theme, end_labels, lr_text

SeriesOf = Callable[[TrialResult], Series]
COLUMNS = 4  # learning rates side by side in the grid of time series


def collapse_and_cure(part: StudyResult, theme: Theme) -> Figure | None:
    """Three panels: loss over learning rates; attention entropy and largest logit over steps at one telling rate."""
    lr = part.telling_lr
    if lr is None:
        return None
    figure = Figure(figsize=(13.6, 4.7))
    figure.suptitle(headline(part, lr), x=0.006, ha="left", fontsize=14, fontweight="bold")
    left, middle, right = figure.subplots(1, 3, width_ratios=[1.15, 1, 1])
    draw_losses(left, part, theme)
    left.set_title("Final loss at each learning rate")
    _draw_ratio(middle, part, lr, theme, labels=True)
    middle.set_title(f"Attention entropy at {lr_text(lr)}")
    middle.set_ylabel("share of its maximum (0 %: one token only)")
    _draw_logit(right, part, lr, theme, labels=True)
    right.set_title(f"Largest attention logit at {lr_text(lr)}")
    return figure


def attention_over_steps(part: StudyResult, theme: Theme) -> Figure | None:
    """Small multiples: a column per learning rate, entropy above and largest logit below."""
    grid = [lr for lr in part.record.learning_rates if any(t.step_S.size for t in part.trials if t.lr == lr)]
    if not grid:
        return None
    blocks = math.ceil(len(grid) / COLUMNS)
    columns = math.ceil(len(grid) / blocks)
    figure = Figure(figsize=(3.1 * columns + 1.2, 4.9 * blocks))
    axes = figure.subplots(2 * blocks, columns, squeeze=False)
    for empty in axes.flat:
        empty.set_visible(False)
    logits = [t.worst_logit for t in part.trials if math.isfinite(t.worst_logit)]
    for index, lr in enumerate(grid):
        row, column = 2 * (index // columns), index % columns
        last = column == columns - 1 or index == len(grid) - 1
        upper, lower = axes[row, column], axes[row + 1, column]
        upper.set_visible(True)
        lower.set_visible(True)
        upper.set_title(f"learning rate {lr_text(lr)}")
        _draw_ratio(upper, part, lr, theme, labels=last)
        _draw_logit(lower, part, lr, theme, labels=last)
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


def entropy_per_head(part: StudyResult, theme: Theme) -> Figure | None:
    """Every head over steps, dark = collapsed: the worst trial beside the steadiest one at the same learning rate."""
    pair = worst_and_best(part)
    if pair is None:
        return None
    palette = Palette(part, theme)
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
        axes.set_title(f"{trial.recipe}, {lr_text(trial.lr)}: {what}", color=palette.colour(trial.recipe))
        if trial.collapse_step is not None:
            axes.axvline(trial.collapse_step, color="#ffffff", linewidth=1.4, linestyle=(0, (4, 2)))
    bar = figure.colorbar(image, ax=all_axes, pad=0.015, aspect=28)
    bar.outline.set_visible(False)
    bar.set_label("head's entropy, share of the maximum")
    return figure


def worst_and_best(part: StudyResult) -> tuple[TrialResult, TrialResult] | None:
    """The collapsed trial of the highest learning rate, and the trial of lowest loss that did not collapse at that
    rate (at any, if none there). None where there is no such pair with per-head arrays."""
    with_heads = [trial for trial in part.trials if trial.head_step_S.size > 1]
    collapsed = [trial for trial in with_heads if trial.collapsed]
    steady = [trial for trial in with_heads if not trial.collapsed and not math.isnan(trial.loss)]
    if not collapsed or not steady:
        return None
    worst = max(collapsed, key=lambda trial: trial.lr)
    return worst, min(steady, key=lambda trial: (trial.lr != worst.lr, trial.loss))


def _draw_ratio(axes: Axes, part: StudyResult, lr: float, theme: Theme, *, labels: bool) -> None:
    palette = Palette(part, theme)
    for recipe, trials in _lines(part, lr):
        colour = palette.colour(recipe)
        for trial in trials:
            _draw_series(axes, trial, trial.entropy_ratio_S, palette)
        collapsed = [trial for trial in trials if trial.collapsed]
        for trial in collapsed:
            _mark_collapse(axes, trial, trial.entropy_ratio_S, colour, theme)
        if collapsed and not palette.crowded:
            last = max(collapsed, key=lambda trial: trial.collapse_step or 0)
            late = (last.collapse_step or 0) > 0.6 * part.steps
            axes.annotate(
                f"collapsed\nat {collapse_steps(collapsed)}",
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
    _step_axis(axes, part)
    if labels:
        _label_ends(axes, part, lr, theme, lambda trial: trial.entropy_ratio_S)


def _draw_logit(axes: Axes, part: StudyResult, lr: float, theme: Theme, *, labels: bool) -> None:
    palette = Palette(part, theme)
    for recipe, trials in _lines(part, lr):
        colour = palette.colour(recipe)
        for trial in trials:
            _draw_series(axes, trial, trial.max_logit_S, palette)
            if trial.collapsed:
                _mark_collapse(axes, trial, trial.max_logit_S, colour, theme)
    axes.set_yscale("log")
    axes.yaxis.set_minor_locator(NullLocator())
    axes.axhline(LOGIT_ALARM, color=theme.muted, linewidth=1, linestyle=(0, (4, 3)))
    axes.annotate(
        f"alarm: {LOGIT_ALARM:,.0f}",
        (0, LOGIT_ALARM),
        xycoords=("axes fraction", "data"),
        xytext=(2, 3),
        textcoords="offset points",
        color=theme.muted,
        fontsize=8.5,
        ha="left",
        va="bottom",
    )
    _step_axis(axes, part)
    highest = [trial.worst_logit for _, trials in _lines(part, lr) for trial in trials]
    axes.set_ylim(1, max([3 * LOGIT_ALARM, *(3 * logit for logit in highest if math.isfinite(logit))]))
    if labels:
        _label_ends(axes, part, lr, theme, lambda trial: trial.max_logit_S)


def _draw_series(axes: Axes, trial: TrialResult, values_S: Series, palette: Palette) -> None:
    axes.plot(
        trial.step_S, values_S, color=palette.colour(trial.recipe), alpha=palette.alpha(trial.recipe),
        linewidth=palette.width, zorder=3 if palette.is_prominent(trial.recipe) else 2,
    )  # fmt: skip


def _lines(part: StudyResult, lr: float) -> Iterator[tuple[str, list[TrialResult]]]:
    """Recipes with their trials of one learning rate that have a series."""
    for recipe in part.record.recipes:
        trials = [trial for trial in part.of(recipe, lr) if trial.step_S.size]
        if trials:
            yield recipe, trials


def _label_ends(axes: Axes, part: StudyResult, lr: float, theme: Theme, values_S: SeriesOf) -> None:
    palette = Palette(part, theme)
    ends = [
        (recipe, float(trials[-1].step_S[-1]), float(values_S(trials[-1])[-1]), palette.colour(recipe))
        for recipe, trials in _lines(part, lr)
        if palette.is_prominent(recipe)
    ]
    end_labels(axes, [end for end in ends if math.isfinite(end[2])])


def _mark_collapse(axes: Axes, trial: TrialResult, values_S: Series, colour: str, theme: Theme) -> None:
    assert trial.collapse_step is not None, "only collapsed trials are marked"
    mark(axes, trial.collapse_step, _at(trial, values_S), True, "X", colour, theme)


def _at(trial: TrialResult, values_S: Series) -> float:
    """The value of a series at the step of collapse."""
    return float(np.interp(trial.collapse_step or 0, trial.step_S, values_S))


def _step_axis(axes: Axes, part: StudyResult) -> None:
    axes.set_xlim(0, part.steps)
    axes.xaxis.set_major_locator(MaxNLocator(4, integer=True, steps=[1, 2, 5, 10]))
    axes.set_xlabel("step")


def _heads(trial: TrialResult) -> int:
    return trial.head_ratio_SLN.shape[1] * trial.head_ratio_SLN.shape[2]


def _edges(step_S: Steps) -> Series:
    """Borders of the cells around S steps: S + 1 values."""
    middle = (step_S[1:] + step_S[:-1]) / 2
    return np.concatenate([[step_S[0]], middle, [step_S[-1]]])
