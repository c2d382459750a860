"""Numbers of a study, computed from its run folders alone. Works on a study of which only a part has run.

Definitions
- *Loss of a trial*: validation loss after its last step. A trial that diverged, or ended above its initial loss l_0,
  counts as l_0 (the clipping of Wortsman et al. 2023, section 2).
- *LR sensitivity* (Wortsman et al. 2023): mean over the study's own learning rates of min(loss, l_0) - l*, l* the
  recipe's best. It depends on the grid, so it compares recipes within one study only. Computed seed by seed.
- *Plateau*: the unbroken range of grid learning rates around the best whose loss is within 0.1 nat of the best.
- *Collapse*: at a monitored step, more than a quarter of all heads have an entropy below a tenth of the causal maximum
  log(T!)/T (the entropy of uniform causal attention). Without per-head arrays: a mean ratio below 0.3. The second
  alarm, a logit above 1000, is reported beside it and does not by itself count as collapse.
- *Spread*: sample standard deviation over seeds; none for a single seed.
"""

import json
import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from comparison.record import FAILURE, StudyRecord, TrialRecord, read_record
from monitoring.recorder import read_metrics, read_signals, read_summary

HEAD_RATIO, HEAD_SHARE, MEAN_RATIO, LOGIT_ALARM, PLATEAU_NATS = 0.1, 0.25, 0.3, 1e3, 0.1


@dataclass(frozen=True)
class TrialResult:
    """What one trial left behind. Series are over its S monitored steps."""

    recipe: str
    lr: float
    seed: int
    run_dir: Path
    config: Path
    summary: dict[str, Any] | None
    """summary.json, or None while the trial has not ended."""
    failure: str | None
    """Why the last attempt at the trial failed, if it did."""
    step_S: NDArray[np.int64]
    entropy_ratio_S: NDArray[np.float64]
    max_logit_S: NDArray[np.float64]
    head_step_S: NDArray[np.int64]
    head_ratio_SLN: NDArray[np.float64]
    """Entropy over the causal maximum, per layer and head; empty without per-head arrays."""
    collapse_step: int | None

    @property
    def ended(self) -> bool:
        return self.summary is not None

    @property
    def diverged(self) -> bool:
        return self.summary is not None and self.summary["status"] == "diverged"

    @property
    def collapsed(self) -> bool:
        return self.collapse_step is not None

    @property
    def loss(self) -> float:
        """The trial's loss as defined above; nan while it has not ended."""
        if self.summary is None:
            return math.nan
        initial, final = self.summary["initial_loss"], self.summary["val_loss"]
        if not math.isfinite(initial):  # diverged in its first step
            return math.inf
        return min(final, initial) if final is not None and math.isfinite(final) else initial

    @property
    def worst_ratio(self) -> float:
        return float(np.nanmin(self.entropy_ratio_S)) if np.isfinite(self.entropy_ratio_S).any() else math.nan

    @property
    def worst_logit(self) -> float:
        return float(np.nanmax(self.max_logit_S)) if not np.isnan(self.max_logit_S).all() else math.nan


@dataclass(frozen=True)
class Spread:
    """Mean over seeds and sample standard deviation (None for a single seed)."""

    mean: float
    sd: float | None
    count: int

    @classmethod
    def of(cls, values: Iterable[float]) -> "Spread":
        values = [value for value in values if not math.isnan(value)]
        if not values:
            return cls(math.nan, None, 0)
        return cls(statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else None, len(values))

    def __format__(self, spec: str) -> str:
        if self.count == 0:
            return "-"
        return f"{self.mean:{spec}}" if self.sd is None else f"{self.mean:{spec}} ± {self.sd:{spec}}"


@dataclass(frozen=True)
class RecipeResult:
    """One recipe over the grid."""

    recipe: str
    losses: dict[float, Spread]
    """Learning rate to loss, for the learning rates that have ended."""
    best_lr: float
    best_loss: Spread
    lr_sensitivity: Spread
    plateau: tuple[float, float]
    worst_ratio: float
    worst_logit: float
    collapsed: list[TrialResult]
    diverged: list[TrialResult]

    @property
    def plateau_decades(self) -> float:
        return math.log10(self.plateau[1] / self.plateau[0])


@dataclass(frozen=True)
class StudyResult:
    """A study, analysed."""

    record: StudyRecord
    trials: list[TrialResult]
    recipes: dict[str, RecipeResult]
    """Only recipes of which at least one trial has ended."""
    missing: list[TrialResult]

    @property
    def single_seed(self) -> bool:
        return len(self.record.seeds) == 1

    def of(self, recipe: str, lr: float) -> list[TrialResult]:
        return [trial for trial in self.trials if trial.recipe == recipe and trial.lr == lr]

    @property
    def telling_lr(self) -> float | None:
        """The learning rate that shows the difference: the middle one of those where some recipes collapse and others
        do not; without any, the highest that has run."""
        grid = self.record.learning_rates
        measured = {lr: [trial for trial in self.trials if trial.lr == lr and trial.step_S.size] for lr in grid}
        divided = [lr for lr, trials in measured.items() if {trial.collapsed for trial in trials} == {True, False}]
        divided = divided or [lr for lr, trials in measured.items() if trials][-1:]
        return divided[(len(divided) - 1) // 2] if divided else None


def analyse(study_dir: Path) -> StudyResult:
    """Read and analyse a study folder. Raises: DataError where the folder holds no study."""
    record = read_record(study_dir)
    trials = [read_trial(study_dir, trial) for trial in record.trials]
    ended = [trial for trial in trials if trial.ended]
    recipes = {
        name: _recipe_result(name, [trial for trial in ended if trial.recipe == name])
        for name in record.recipes
        if any(trial.recipe == name for trial in ended)
    }
    return StudyResult(record, trials, recipes, [trial for trial in trials if not trial.ended])


def read_trial(study_dir: Path, trial: TrialRecord) -> TrialResult:
    """Read one run folder; a trial that has not started has empty series."""
    run_dir = study_dir / trial.run_dir
    measured = [line for line in read_metrics(run_dir) if "entropy_ratio" in line]
    step_S = np.array([line["step"] for line in measured], dtype=np.int64)
    ratio_S = np.array([line["entropy_ratio"] for line in measured], dtype=np.float64)
    head_step_S, head_ratio_SLN = read_signals(run_dir, "entropy_ratio")
    return TrialResult(
        recipe=trial.recipe,
        lr=trial.lr,
        seed=trial.seed,
        run_dir=run_dir,
        config=study_dir / trial.config,
        summary=read_summary(run_dir),
        failure=_failure(run_dir),
        step_S=step_S,
        entropy_ratio_S=ratio_S,
        max_logit_S=np.array([line.get("max_logit", math.nan) for line in measured], dtype=np.float64),
        head_step_S=head_step_S,
        head_ratio_SLN=head_ratio_SLN,
        collapse_step=collapse_step(step_S, ratio_S, head_step_S, head_ratio_SLN),
    )


def collapse_step(
    step_S: NDArray[np.int64],
    ratio_S: NDArray[np.float64],
    head_step_S: NDArray[np.int64],
    head_ratio_SLN: NDArray[np.float64],
) -> int | None:
    """First monitored step at which attention has collapsed (definition above), or None."""
    if head_step_S.size:
        share_S = (head_ratio_SLN < HEAD_RATIO).reshape(head_step_S.size, -1).mean(axis=1)
        steps = head_step_S[share_S > HEAD_SHARE]
    else:
        steps = step_S[ratio_S < MEAN_RATIO]
    return int(steps[0]) if steps.size else None


def lr_sensitivity(losses: Sequence[float]) -> float:
    """Mean distance from the best over the grid, of losses already clipped at l_0 (Wortsman et al. 2023, eq. 1)."""
    return statistics.fmean(losses) - min(losses)


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


def _recipe_result(recipe: str, ended: list[TrialResult]) -> RecipeResult:
    grid = sorted({trial.lr for trial in ended})
    losses = {lr: Spread.of(trial.loss for trial in ended if trial.lr == lr) for lr in grid}
    means = {lr: spread.mean for lr, spread in losses.items()}
    best_lr = min(grid, key=lambda lr: means[lr])
    seeds = sorted({trial.seed for trial in ended})
    by_seed = [[trial.loss for trial in ended if trial.seed == seed] for seed in seeds]
    whole = [row for row in by_seed if len(row) == len(grid)] or [list(means.values())]
    return RecipeResult(
        recipe=recipe,
        losses=losses,
        best_lr=best_lr,
        best_loss=losses[best_lr],
        lr_sensitivity=Spread.of(lr_sensitivity(row) for row in whole),
        plateau=plateau(means),
        worst_ratio=_extreme(min, (trial.worst_ratio for trial in ended)),
        worst_logit=_extreme(max, (trial.worst_logit for trial in ended)),
        collapsed=[trial for trial in ended if trial.collapsed],
        diverged=[trial for trial in ended if trial.diverged],
    )


def _failure(run_dir: Path) -> str | None:
    path = run_dir / FAILURE
    return json.loads(path.read_text(encoding="utf-8"))["reason"] if path.exists() else None


def _extreme(pick: Any, values: Iterable[float]) -> float:
    return pick((value for value in values if not math.isnan(value)), default=math.nan)
