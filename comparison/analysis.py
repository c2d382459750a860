"""Numbers of a study, computed from its run folders alone. Works on a study of which only a part has run.

Definitions (of trials: `comparison.trial_result`; of intervals and tests: `comparison.statistics`)
- *Best learning rate*: that of the lowest mean loss over seeds, and the same one for all seeds. It is chosen with the
  seeds that it is judged with, which flatters a recipe whose curve is noisy: the minimum of noisy means is too low.
- *LR sensitivity* (Wortsman et al. 2023): mean over the study's own learning rates of min(loss, l_0) - l*, l* the loss
  at the best learning rate. It depends on the grid, so it compares recipes within one study only. Seed by seed.
- *Plateau*: the unbroken range of grid learning rates around the best whose loss is within 0.1 nat of the best.
"""

import math
import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from comparison.record import StudyRecord, read_record
from comparison.statistics import Estimate
from comparison.trial_result import TrialResult, read_trial

PLATEAU_NATS = 0.1


@dataclass(frozen=True)
class RecipeResult:
    """One recipe (at one shape) over the grid of learning rates and seeds."""

    recipe: str
    ended: list[TrialResult]
    losses: dict[float, Estimate]
    """Learning rate to loss, for the learning rates that have ended."""
    by_seed: dict[int, dict[float, float]]
    """Seed to learning rate to loss."""
    best_lr: float
    lr_sensitivity: Estimate
    sensitivity_by_seed: dict[int, float]
    """Of the seeds that have the whole row."""
    plateau: tuple[float, float]

    @property
    def best_loss(self) -> Estimate:
        return self.losses[self.best_lr]

    @property
    def plateau_decades(self) -> float:
        return math.log10(self.plateau[1] / self.plateau[0])

    @property
    def collapsed(self) -> list[TrialResult]:
        return [trial for trial in self.ended if trial.collapsed]

    @property
    def rank_collapsed(self) -> list[TrialResult]:
        return [trial for trial in self.ended if trial.rank_collapsed]

    @property
    def blew_up(self) -> list[TrialResult]:
        """Diverged or ended above the initial loss."""
        return [trial for trial in self.ended if trial.blew_up]

    @property
    def stopped(self) -> list[TrialResult]:
        """Ended early by the study."""
        return [trial for trial in self.ended if trial.summary is None]

    @property
    def worst_ratio(self) -> float:
        return _extreme(min, (trial.worst_ratio for trial in self.ended))

    @property
    def worst_logit(self) -> float:
        return _extreme(max, (trial.worst_logit for trial in self.ended))

    @property
    def first_collapse(self) -> TrialResult | None:
        """The trial whose attention collapsed after the fewest steps."""
        return min(self.collapsed, key=lambda trial: trial.collapse_step or 0, default=None)

    @property
    def spikes_per_1000(self) -> float:
        steps = sum(trial.logged_steps for trial in self.ended)
        return 1000 * sum(trial.spikes for trial in self.ended) / steps if steps else math.nan

    @property
    def tokens_per_s(self) -> Estimate:
        return Estimate.of(trial.tokens_per_s for trial in self.ended)

    @property
    def peak_memory(self) -> float:
        return _extreme(max, (trial.peak_memory for trial in self.ended))

    def at(self, lr: float, seeds: Iterable[int]) -> list[float]:
        """Losses at a learning rate, nan where a seed has none."""
        return [self.by_seed.get(seed, {}).get(lr, math.nan) for seed in seeds]

    def lost_at(self, lr: float) -> bool:
        """Whether every trial at a learning rate blew up."""
        return all(trial.blew_up for trial in self.ended if trial.lr == lr)

    def bound_at(self, lr: float) -> bool:
        return lr in self.losses and self.losses[lr].bound


@dataclass(frozen=True)
class StudyResult:
    """A study, or that part of one which has one shape, analysed."""

    record: StudyRecord
    shape: str
    trials: list[TrialResult]
    recipes: dict[str, RecipeResult]
    """Only recipes of which at least one trial has ended; in the order of the study."""

    @property
    def missing(self) -> list[TrialResult]:
        return [trial for trial in self.trials if not trial.ended]

    @property
    def single_seed(self) -> bool:
        return len(self.record.seeds) == 1

    @property
    def baseline(self) -> RecipeResult | None:
        """The study's first recipe, if a trial of it has ended."""
        return self.recipes.get(next(iter(self.record.recipes)))

    @property
    def leader(self) -> RecipeResult:
        """The recipe of the lowest mean loss, whether or not it is told apart from the others."""
        return min(self.recipes.values(), key=lambda recipe: recipe.best_loss.mean)

    @property
    def complete_rows(self) -> bool:
        """Whether every recipe with results has ended at every learning rate."""
        return all(len(recipe.losses) == len(self.record.learning_rates) for recipe in self.recipes.values())

    @property
    def steps(self) -> int:
        """Of the longest trial."""
        return max((trial.record.steps for trial in self.trials), default=0) or self.record.steps

    def of(self, recipe: str, lr: float) -> list[TrialResult]:
        return self._by_cell.get((recipe, lr), [])

    @cached_property
    def _by_cell(self) -> dict[tuple[str, float], list[TrialResult]]:
        cells: dict[tuple[str, float], list[TrialResult]] = {}
        for trial in self.trials:
            cells.setdefault((trial.recipe, trial.lr), []).append(trial)
        return cells

    @property
    def telling_lr(self) -> float | None:
        """The learning rate that shows the difference: the middle one of those where some recipes collapse and others
        do not; without any, the highest that has run."""
        grid = self.record.learning_rates
        measured = {lr: [trial for trial in self.trials if trial.lr == lr and trial.step_S.size] for lr in grid}
        divided = [lr for lr, trials in measured.items() if {trial.collapsed for trial in trials} == {True, False}]
        divided = divided or [lr for lr, trials in measured.items() if trials][-1:]
        return divided[(len(divided) - 1) // 2] if divided else None


@dataclass(frozen=True)
class Analysis:
    """A study folder: its record and, for each shape, its numbers."""

    dir: Path
    record: StudyRecord
    parts: dict[str, StudyResult]
    """Shape to its part; one part named "" for a study without shapes."""

    @property
    def trials(self) -> list[TrialResult]:
        return [trial for part in self.parts.values() for trial in part.trials]

    @property
    def missing(self) -> list[TrialResult]:
        return [trial for trial in self.trials if not trial.ended]

    @property
    def with_results(self) -> dict[str, StudyResult]:
        """The parts of which a trial has ended."""
        return {shape: part for shape, part in self.parts.items() if part.recipes}


def analyse(study_dir: Path) -> Analysis:
    """Read and analyse a study folder. Raises: DataError where the folder holds no study, or a damaged one."""
    record = read_record(study_dir)
    return analysed(study_dir, record, [read_trial(study_dir, trial) for trial in record.trials])


def analysed(study_dir: Path, record: StudyRecord, trials: Sequence[TrialResult]) -> Analysis:
    """The same, of trials that have been read."""
    parts = {}
    for shape in record.shapes or [""]:
        here = [trial for trial in trials if trial.record.shape == shape]
        recipes = {
            name: recipe_result(name, ended)
            for name in record.recipes
            if (ended := [trial for trial in here if trial.recipe == name and trial.ended])
        }
        parts[shape] = StudyResult(record, shape, here, recipes)
    return Analysis(study_dir, record, parts)


def recipe_result(recipe: str, ended: list[TrialResult]) -> RecipeResult:
    """The numbers of one recipe from its ended trials, at least one."""
    grid = sorted({trial.lr for trial in ended})
    cells = {lr: [trial for trial in ended if trial.lr == lr] for lr in grid}
    losses = {
        lr: Estimate.of((trial.loss for trial in cell), bound=any(trial.bound for trial in cell))
        for lr, cell in cells.items()
    }
    means = {lr: estimate.mean for lr, estimate in losses.items()}
    best_lr = min(grid, key=lambda lr: means[lr])
    seeds = sorted({trial.seed for trial in ended})
    by_seed = {seed: {trial.lr: trial.loss for trial in ended if trial.seed == seed} for seed in seeds}
    sensitivity = {seed: lr_sensitivity(row, best_lr) for seed, row in by_seed.items() if len(row) == len(grid)}
    shown = list(sensitivity.values()) or [lr_sensitivity(means, best_lr)]
    return RecipeResult(
        recipe=recipe,
        ended=ended,
        losses=losses,
        by_seed=by_seed,
        best_lr=best_lr,
        lr_sensitivity=Estimate.of(shown, bound=any(estimate.bound for estimate in losses.values())),
        sensitivity_by_seed=sensitivity,
        plateau=plateau(means),
    )


def lr_sensitivity(losses: dict[float, float], best_lr: float) -> float:
    """Mean distance over the grid from the loss at the best learning rate, of losses already clipped at l_0 (Wortsman
    et al. 2023, eq. 1); nan where the best is not finite."""
    best = losses[best_lr]
    return statistics.fmean(losses.values()) - best if math.isfinite(best) else math.nan


def plateau(losses: dict[float, float]) -> tuple[float, float]:
    """Lowest and highest learning rate of the unbroken range around the best that stays within 0.1 nat of it."""
    grid = sorted(losses)
    best = min(grid, key=lambda lr: losses[lr])
    first = last = grid.index(best)
    limit = losses[best] + PLATEAU_NATS
    while first > 0 and losses[grid[first - 1]] <= limit:
        first -= 1
    while last < len(grid) - 1 and losses[grid[last + 1]] <= limit:
        last += 1
    return grid[first], grid[last]


def _extreme(pick: Callable[..., float], values: Iterable[float]) -> float:
    return pick((value for value in values if not math.isnan(value)), default=math.nan)
