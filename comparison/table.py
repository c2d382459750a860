"""The study for a terminal: losses over learning rates, what befell the trials, then the verdict."""

import math
from collections.abc import Callable, Iterator

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from comparison import verdict
from comparison.analysis import Analysis, RecipeResult, StudyResult
from comparison.heat_map import LEGEND, marks
from comparison.palette import in_order
from comparison.statistics import Estimate
from comparison.trial_result import TrialResult
from comparison.wording import MANY, big, percent
from monitoring.style import lr_text


def table(analysis: Analysis) -> RenderableType:
    """Loss of every recipe and learning rate (of few recipes also entropy and largest logit) at the end of training."""
    parts = analysis.with_results
    tables = [_titled(shape, _table(part)) for shape, part in parts.items()]
    several = any(not part.single_seed for part in parts.values())
    over = ", mean over seeds (± standard deviation of few recipes)" if several else ""
    note = Text(
        f"Validation loss{over}, entropy (share of its maximum) and max logit at the end of training.\n{LEGEND}"
    )
    lines = "\n".join(f"- {sentence}" for sentence in verdict.sentences(analysis))
    return Group(Text(f"Study {analysis.record.name}", style="bold"), *tables, note, Text(lines))


def _titled(shape: str, shown: Table) -> RenderableType:
    return Group(Text(shape, style="bold"), shown) if shape else shown


def _table(part: StudyResult) -> Table:
    shown = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    grid = part.record.learning_rates
    shown.add_column("learning rate", no_wrap=True)
    for lr in grid:
        shown.add_column(lr_text(lr), justify="right", no_wrap=True)
    shown.add_column("LR sensitivity" if len(grid) <= MANY else "LR\nsens.", justify="right")
    few = len(part.recipes) <= MANY
    for recipe in in_order(part):
        groups = [part.of(recipe.recipe, lr) for lr in grid]
        losses = [_loss(group, best=lr == recipe.best_lr) for lr, group in zip(grid, groups, strict=True)]
        name = Text(recipe.recipe, style="bold")
        shown.add_row(name, *losses, _mean(recipe.lr_sensitivity))
        for row in _more_rows(part, recipe, groups) if few else ():
            shown.add_row(*row)
        if few:
            shown.add_section()
    return shown


def _more_rows(part: StudyResult, recipe: RecipeResult, groups: list[list[TrialResult]]) -> Iterator[list[str | Text]]:
    if not part.single_seed:
        deviations = [recipe.losses[lr].sd if lr in recipe.losses else None for lr in part.record.learning_rates]
        sd = recipe.lr_sensitivity.sd
        yield ["  ± over seeds", *(_sd(deviation) for deviation in deviations), _sd(sd)]
    yield ["  entropy", *(_last(group, "entropy_ratio", percent) for group in groups)]
    yield ["  max logit", *(_last(group, "max_logit", big) for group in groups)]


def _loss(group: list[TrialResult], *, best: bool) -> Text:
    """Loss over the seeds of one recipe and learning rate, with what befell them; the recipe's best underlined."""
    estimate = Estimate.of((trial.loss for trial in group), bound=any(trial.bound for trial in group))
    befell = marks(group)
    text = Text(f"{befell} " if befell else "", style="bold red" if befell else "")
    return text.append(_mean(estimate), style="underline" if best else "")


def _mean(estimate: Estimate) -> str:
    return "-" if math.isnan(estimate.mean) else f"{'≤' if estimate.bound else ''}{estimate.mean:.3f}"


def _sd(deviation: float | None) -> str:
    return "-" if deviation is None else f"{deviation:.3f}"


def _last(group: list[TrialResult], key: str, write_number: Callable[[float], str]) -> Text:
    """A number of summary.json, mean over seeds."""
    values = [trial.summary[key] for trial in group if trial.summary is not None and trial.summary.get(key) is not None]
    return Text(write_number(Estimate.of(values).mean), style="red" if any(trial.collapsed for trial in group) else "")
