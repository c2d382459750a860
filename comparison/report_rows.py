"""The rows of the report's tables: plain text, with the anchor of the trials that a number comes from."""

import shlex
from typing import Any

from comparison.analysis import Analysis, RecipeResult, StudyResult
from comparison.heat_map import marks
from comparison.palette import Palette, in_order
from comparison.ranking import Ranking, rank
from comparison.statistics import Difference
from comparison.trial_result import TrialResult
from comparison.verdict import speeds
from comparison.wording import big, memory, percent, rates, span
from monitoring.style import DARK, LIGHT, lr_text

NO_BREAK_HYPHEN = "\u2011"
"""Or a narrow cell would break 1e-2 in two."""
Row = dict[str, Any]


def recipe_rows(part: StudyResult) -> list[Row]:
    """Losses and LR sensitivity with intervals, and what they are against the baseline."""
    ranking = rank(part)
    rows = []
    for recipe in in_order(part):
        name, low_high = recipe.recipe, recipe.plateau
        partial = len(recipe.losses) < len(part.record.learning_rates)
        rows.append(
            _start(part, recipe)
            | {
                "best": f"{recipe.best_loss:.3f}",
                "to_lowest": _to_lowest(recipe, ranking),
                "at": lr_text(recipe.best_lr),
                "loss_to_baseline": _difference(ranking.losses.get(name)),
                "sensitivity": f"{recipe.lr_sensitivity:.3f}",
                "sensitivity_to_baseline": _difference(ranking.sensitivities.get(name)),
                "plateau": span(*low_high)
                + (f" ({recipe.plateau_decades:.1f} decades)" if recipe.plateau_decades else ""),
                "coverage": f"{len(recipe.losses)} of {len(part.record.learning_rates)} LRs" if partial else "",
            }
        )
    return rows


def stability_rows(part: StudyResult) -> list[Row]:
    """What befell the trials of each recipe, and what it cost."""
    ratios = speeds(part)
    rows = []
    for recipe in in_order(part):
        first, speed = recipe.first_collapse, recipe.tokens_per_s
        ratio = f" ({percent(ratios[recipe.recipe].mean)})" if recipe.recipe in ratios else ""
        rows.append(
            _start(part, recipe)
            | {
                "collapsed": _count(recipe.collapsed, recipe),
                "first": "-" if first is None else f"step {first.collapse_step} at {lr_text(first.lr)}",
                "rank_collapsed": _count(recipe.rank_collapsed, recipe),
                "blew_up": _count(recipe.blew_up, recipe),
                "stopped": _count(recipe.stopped, recipe),
                "ratio": percent(recipe.worst_ratio),
                "logit": big(recipe.worst_logit),
                "spikes": f"{recipe.spikes_per_1000:.2f}",
                "speed": f"{speed.mean:,.0f}{ratio}" if speed.count else "-",
                "memory": memory(recipe.peak_memory),
            }
        )
    return rows


def loss_rows(part: StudyResult) -> list[Row]:
    """A cell per recipe and learning rate."""
    return [
        _start(part, recipe)
        | {
            "cells": [
                {
                    "text": f"{recipe.losses[lr]:.3f}" if lr in recipe.losses else "not run",
                    "marks": marks(part.of(recipe.recipe, lr)),
                    "best": lr == recipe.best_lr,
                    "anchor": anchor(part.shape, recipe.recipe, lr),
                }
                for lr in part.record.learning_rates
            ]
        }
        for recipe in in_order(part)
    ]


def trial_rows(analysis: Analysis) -> list[Row]:
    """All trials; the first of each recipe and learning rate has the anchor."""
    rows, anchors = [], set[str]()
    for part in analysis.parts.values():
        for trial in sorted(part.trials, key=lambda trial: (list(part.record.recipes).index(trial.recipe), trial.lr)):
            name = anchor(part.shape, trial.recipe, trial.lr)
            rows.append(_trial_row(trial, part) | {"anchor": "" if name in anchors else name})
            anchors.add(name)
    return rows


def anchor(shape: str, recipe: str, lr: float) -> str:
    """Where the trials of a number are in the page."""
    return "/".join(filter(None, ("trials", shape, recipe, lr_text(lr))))


def _trial_row(trial: TrialResult, part: StudyResult) -> Row:
    return {
        "recipe": f"{trial.recipe} · {part.shape}" if part.shape else trial.recipe,
        "colour": _colours(part, trial.recipe),
        "lr": lr_text(trial.lr),
        "seed": trial.seed,
        "state": _state(trial),
        "loss": f"{'≤ ' if trial.bound else ''}{trial.loss:.3f}" if trial.ended else "-",
        "ratio": percent(trial.worst_ratio),
        "logit": big(trial.worst_logit),
        "collapse": f"step {trial.collapse_step}" if trial.collapsed else "",
        "rank_collapse": f"step {trial.rank_collapse_step}" if trial.rank_collapsed else "",
        "spikes": trial.spikes or "",
        "speed": f"{trial.tokens_per_s:,.0f}" if trial.tokens_per_s == trial.tokens_per_s else "-",
        "run_dir": str(trial.run_dir),
        "link": trial.record.run_dir,
        "run_id": trial.run_id or "",
        "command": f"steadytrain train {shlex.quote(str(trial.config))} --overwrite",
    }


def _state(trial: TrialResult) -> str:
    if trial.summary is not None:
        return str(trial.summary["status"])
    if trial.stopped is not None:
        return f"stopped at step {trial.stopped['step']}: {trial.stopped['reason']}"
    if trial.failure is not None:
        return f"failed: {trial.failure}"
    return "running or interrupted" if trial.logged_steps else "not run"


def _start(part: StudyResult, recipe: RecipeResult) -> Row:
    return {
        "name": recipe.recipe,
        "note": "baseline" if recipe is part.baseline else "",
        "colour": _colours(part, recipe.recipe),
        "anchor": anchor(part.shape, recipe.recipe, recipe.best_lr),
    }


def _difference(difference: Difference | None) -> Row | None:
    """A difference and in one word whether it is shown."""
    if difference is None:
        return None
    word = ("lower" if difference.mean < 0 else "higher") if difference.shown else "not shown"
    return {"text": f"{difference:.3f}", "word": word, "p": f"{difference.p:.2g}"}


def _to_lowest(recipe: RecipeResult, ranking: Ranking) -> Row | None:
    """Whether a recipe is shown to be behind the one of the lowest loss; None for that one, and where nothing says."""
    found = ranking.behind.get(recipe.recipe)
    if found is None:
        return None
    words = "behind the lowest" if found.shown else "not told apart"
    return {"text": f"{words}, p = {found.p:.2g}", "shown": found.shown}


def _count(trials: list[TrialResult], recipe: RecipeResult) -> Row:
    """How many of a recipe's trials, and at which learning rates."""
    at = rates(trial.lr for trial in trials).replace("-", NO_BREAK_HYPHEN) if trials else ""
    text = f"{len(trials)} of {len(recipe.ended)}" + (f" (at {at})" if trials else "")
    return {"text": text, "alarm": bool(trials)}


def _colours(part: StudyResult, recipe: str) -> dict[str, str]:
    return {"light": Palette(part, LIGHT).colour(recipe), "dark": Palette(part, DARK).colour(recipe)}
