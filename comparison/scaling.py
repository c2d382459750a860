"""How a recipe's best learning rate moves with the width of the model.

The best learning rate of a shape is refined between grid points: the vertex of the parabola through the losses at the
best rate and its two neighbours, over log LR. A line through log(best LR) against log(hidden size), seed by seed, gives
the exponent: -1 halves the best learning rate when the width doubles. Its 95 % interval over seeds is the t interval.
A best rate at an end of the grid might lie anywhere beyond it: then the grid cannot show how it moves.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from comparison.analysis import Analysis, RecipeResult, StudyResult
from comparison.statistics import paired

WIDTH = "model.hidden_size"


@dataclass(frozen=True)
class LrScaling:
    """One recipe's best learning rate against width."""

    recipe: str
    best: dict[int, float]
    """Width to best learning rate, refined between grid points (mean over seeds of its logarithm)."""
    exponent: float
    interval: tuple[float, float] | None
    """95 % interval of the exponent; None for one seed."""
    at_end: list[str]
    """Shapes whose best learning rate is an end of the grid."""

    @property
    def shown(self) -> bool:
        return not self.at_end and self.interval is not None and (self.interval[0] > 0 or self.interval[1] < 0)

    def sentence(self) -> str:
        """The same in words."""
        if self.at_end:
            where = ", ".join(self.at_end)
            return (
                f"{self.recipe}: its best learning rate is at an end of the grid ({where}), so its move is not shown."
            )
        factor = 2**self.exponent
        said = f"divides by {1 / factor:.2g}" if factor < 1 else f"is multiplied by {factor:.2g}"
        widths = f"when the width doubles (from {min(self.best)} to {max(self.best)})"
        if self.interval is None:
            return f"{self.recipe}: the best learning rate {said} {widths}; one seed, so there is no interval."
        if not self.shown:
            low, high = (2**end for end in self.interval)
            return f"{self.recipe}: no move of the best learning rate with width is shown (x {low:.2g} to {high:.2g})."
        ends = sorted(2 ** abs(end) for end in self.interval)
        return f"{self.recipe}: the best learning rate {said} [{ends[0]:.2g}, {ends[1]:.2g}] {widths}."


def lr_scaling(analysis: Analysis) -> list[LrScaling]:
    """For every recipe that has results at two widths or more; empty where shapes do not differ in width."""
    parts = {shape: part for shape, part in analysis.with_results.items() if _width(part) is not None}
    if len({_width(part) for part in parts.values()}) < 2:
        return []
    names = [name for name in analysis.record.recipes if any(name in part.recipes for part in parts.values())]
    return [found for name in names if (found := _scaling(name, parts)) is not None]


def _scaling(name: str, parts: dict[str, StudyResult]) -> LrScaling | None:
    here = [
        (part, part.recipes[name], width) for part in parts.values() if name in part.recipes and (width := _width(part))
    ]
    widths = [width for _, _, width in here]
    seeds = sorted(set.intersection(*(set(recipe.sensitivity_by_seed) for _, recipe, _ in here)))
    if len(set(widths)) < 2 or not seeds:
        return None
    at_end = [part.shape for part, recipe, _ in here if recipe.best_lr in (min(recipe.losses), max(recipe.losses))]
    log_lr_SW = np.array([[math.log(vertex(recipe, seed)) for _, recipe, _ in here] for seed in seeds])
    exponent_S = np.polyfit(np.log(widths), log_lr_SW.T, 1)[0].round(9)  # what rounding leaves is no move
    difference = paired(name, "", exponent_S.tolist(), [0.0] * len(seeds))
    means = dict(zip(widths, np.exp(log_lr_SW.mean(axis=0)).tolist(), strict=True))
    interval = None if difference is None else (difference.low, difference.high)
    return LrScaling(name, means, float(exponent_S.mean()), interval, at_end)


def vertex(recipe: RecipeResult, seed: int) -> float:
    """The best learning rate of one seed between grid points: never past the neighbours of the recipe's best one."""
    grid = sorted(recipe.losses)
    middle = grid.index(recipe.best_lr)
    if middle in (0, len(grid) - 1):
        return recipe.best_lr
    three = grid[middle - 1 : middle + 2]
    curvature, slope, _ = np.polyfit(np.log(three), [recipe.by_seed[seed][lr] for lr in three], 2)
    if not curvature > 0:
        return min(three, key=lambda lr: recipe.by_seed[seed][lr])
    return float(np.exp(np.clip(-slope / (2 * curvature), *np.log([three[0], three[2]]))))


def sentences(analysis: Analysis) -> Iterator[str]:
    """What the study says about the best learning rate and width."""
    found = lr_scaling(analysis)
    for scaling in found:
        yield scaling.sentence()
    if len(found) > 1 and any(scaling.shown for scaling in found):
        yield "Moves with width have each their own interval, not corrected for the number of recipes."


def _width(part: StudyResult) -> int | None:
    """The hidden size of a part with a shape."""
    keys = part.record.shapes.get(part.shape, {})
    return keys.get(WIDTH, part.record.base.get("model", {}).get("hidden_size")) if part.shape else None
