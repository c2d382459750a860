"""The study's own numbers for its MLflow run: one metric per recipe (and shape) and quantity."""

import math
from collections.abc import Iterator

from comparison.analysis import Analysis, RecipeResult, StudyResult
from comparison.ranking import Ranking, rank
from comparison.statistics import Difference


def study_metrics(analysis: Analysis) -> dict[str, float]:
    """`best_loss/<recipe>`, or `best_loss/<recipe>/<shape>` in a study with shapes, and so on; only finite numbers."""
    found: dict[str, float] = {}
    for shape, part in analysis.with_results.items():
        ranking = rank(part)
        for name, recipe in part.recipes.items():
            suffix = (f"{name}/{shape}" if shape else name).replace("+", "_plus_")  # MLflow takes no + in a name
            found |= {f"{key}/{suffix}": value for key, value in _numbers(part, recipe, ranking)}
    return {key: value for key, value in found.items() if math.isfinite(value)}


def _numbers(part: StudyResult, recipe: RecipeResult, ranking: Ranking) -> Iterator[tuple[str, float]]:
    yield "best_loss", recipe.best_loss.mean
    yield "best_lr", recipe.best_lr
    yield "lr_sensitivity", recipe.lr_sensitivity.mean
    yield "plateau_decades", recipe.plateau_decades
    yield "collapsed_trials", float(len(recipe.collapsed))
    yield "rank_collapsed_trials", float(len(recipe.rank_collapsed))
    yield "divergence_rate", len(recipe.blew_up) / len(recipe.ended)
    yield "stopped_trials", float(len(recipe.stopped))
    yield "spikes_per_1000_steps", recipe.spikes_per_1000
    yield "lowest_entropy_ratio", recipe.worst_ratio
    yield "largest_logit", recipe.worst_logit
    yield "tokens_per_s", recipe.tokens_per_s.mean
    yield "peak_memory_bytes", recipe.peak_memory
    if recipe.best_loss.interval is not None:
        yield "best_loss_low", recipe.best_loss.interval[0]
        yield "best_loss_high", recipe.best_loss.interval[1]
    yield from _difference("loss_to_baseline", ranking.losses.get(recipe.recipe))
    yield from _difference("lr_sensitivity_to_baseline", ranking.sensitivities.get(recipe.recipe))


def _difference(key: str, difference: Difference | None) -> Iterator[tuple[str, float]]:
    """A paired difference with the ends of its interval, and whether it is shown."""
    if difference is not None:
        yield key, difference.mean
        yield f"{key}_low", difference.low
        yield f"{key}_high", difference.high
        yield f"{key}_shown", float(difference.shown)
