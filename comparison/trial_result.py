"""One trial of a study, read from its run folder.

Definitions
- *Loss of a trial*: validation loss after its last step. A trial that diverged, or ended above its initial loss l_0,
  counts as l_0 (the clipping of Wortsman et al. 2023, section 2). So does one that the study's rule `above_initial`
  stopped. One that the rule `behind` stopped counts with its training loss at that step, which is a bound: it might
  have gone on falling.
- *Collapse* (of attention entropy): at a monitored step, more than a quarter of all heads have an entropy below a tenth
  of the causal maximum log(T!)/T (the entropy of uniform causal attention). Without per-head arrays: a mean ratio below
  0.3. The second alarm, a logit above 1000, is reported beside it and does not by itself count as collapse.
- *Rank collapse* (Noci et al. 2022): in some layer two tokens' outputs have a mean cosine of at least 0.99 while the
  mean attention entropy is at least 0.9 of its maximum, for 100 steps on end (healthy runs pass through shorter phases
  of it while they learn how often each token occurs). All tokens have become alike and attention, which has nothing to
  choose from, is uniform: the opposite of entropy collapse.

Shapes: S monitored steps, L layers, N heads.
"""

import math
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from comparison.record import FAILURE, TrialRecord
from configs.errors import DataError
from monitoring.recorder import SIGNALS, read_events, read_metrics, read_object, read_stopped, read_summary

HEAD_RATIO, HEAD_SHARE, MEAN_RATIO, LOGIT_ALARM = 0.1, 0.25, 0.3, 1e3
TOKEN_COSINE, UNIFORM_RATIO, RANK_STEPS = 0.99, 0.9, 100
RUN_ID = "mlflow_run_id"

Series = NDArray[np.float64]
Steps = NDArray[np.int64]


@dataclass(frozen=True)
class TrialResult:
    """What one trial left behind. Series are over its S monitored steps."""

    record: TrialRecord
    run_dir: Path
    config: Path
    summary: dict[str, Any] | None
    """summary.json, or None while the trial has not ended by itself."""
    stopped: dict[str, Any] | None
    """stopped.json, if the study ended the trial early: step, loss, initial_loss, rule, reason."""
    failure: str | None
    """Why the last attempt at the trial failed, if it did."""
    run_id: str | None
    """Of its MLflow run, where it has one."""
    logged_steps: int
    spikes: int
    """Alarms of the loss-spike detector."""
    step_S: Steps
    entropy_ratio_S: Series
    max_logit_S: Series
    head_step_S: Steps
    head_ratio_SLN: Series
    """Entropy over the causal maximum, per layer and head; empty without per-head arrays."""
    collapse_step: int | None
    rank_collapse_step: int | None

    @property
    def recipe(self) -> str:
        return self.record.recipe

    @property
    def lr(self) -> float:
        return self.record.lr

    @property
    def seed(self) -> int:
        return self.record.seed

    @property
    def ended(self) -> bool:
        return self.summary is not None or self.stopped is not None

    @property
    def diverged(self) -> bool:
        return self.summary is not None and self.summary["status"] == "diverged"

    @property
    def blew_up(self) -> bool:
        """Whether it diverged or ended above its initial loss."""
        if self.summary is None:
            return self.stopped is not None and not self.bound
        final = self.summary["val_loss"]
        return self.diverged or (final is not None and not final <= self.summary["initial_loss"])

    @property
    def bound(self) -> bool:
        """Whether its loss is only where it was stopped."""
        return self.summary is None and self.stopped is not None and self.stopped["rule"] == "behind"

    @property
    def saved_steps(self) -> int:
        """Steps that were not run because the study stopped the trial."""
        return 0 if self.summary is not None or self.stopped is None else self.record.steps - self.stopped["step"]

    @property
    def collapsed(self) -> bool:
        return self.collapse_step is not None

    @property
    def rank_collapsed(self) -> bool:
        return self.rank_collapse_step is not None

    @cached_property
    def loss(self) -> float:
        """The trial's loss as defined above; nan while it has not ended."""
        ending = self.summary or self.stopped
        if ending is None:
            return math.nan
        initial = ending["initial_loss"]
        if not math.isfinite(initial):  # diverged in its first step
            return math.inf
        final = ending["val_loss"] if self.summary is not None else ending["loss"] if self.bound else None
        return min(final, initial) if final is not None and math.isfinite(final) else initial

    @property
    def tokens_per_s(self) -> float:
        return float((self.summary or {}).get("tokens_per_s") or math.nan)

    @property
    def peak_memory(self) -> float:
        """Bytes of the process that took most; nan where it was not measured."""
        return float((self.summary or {}).get("peak_memory_bytes") or math.nan)

    @property
    def worst_ratio(self) -> float:
        return float(np.nanmin(self.entropy_ratio_S)) if np.isfinite(self.entropy_ratio_S).any() else math.nan

    @property
    def worst_logit(self) -> float:
        return float(np.nanmax(self.max_logit_S)) if not np.isnan(self.max_logit_S).all() else math.nan


def read_trial(study_dir: Path, trial: TrialRecord) -> TrialResult:
    """Read one run folder; a trial that has not started has empty series. Raises: DataError for damaged files."""
    run_dir = study_dir / trial.run_dir
    metrics = read_metrics(run_dir)
    measured = [line for line in metrics if "entropy_ratio" in line]
    step_S = np.array([line["step"] for line in measured], dtype=np.int64)
    ratio_S = np.array([line["entropy_ratio"] for line in measured], dtype=np.float64)
    (head_step_S, head_ratio_SLN), (cosine_step_S, cosine_SL) = read_arrays(run_dir, "entropy_ratio", "token_cosine")
    return TrialResult(
        record=trial,
        run_dir=run_dir,
        config=study_dir / trial.config,
        summary=read_summary(run_dir),
        stopped=read_stopped(run_dir),
        failure=(read_object(run_dir / FAILURE) or {}).get("reason"),
        run_id=_text(run_dir / RUN_ID),
        logged_steps=len(metrics),
        spikes=sum(event.get("detector") == "loss_spike" for event in read_events(run_dir)),
        step_S=step_S,
        entropy_ratio_S=ratio_S,
        max_logit_S=np.array([line.get("max_logit", math.nan) for line in measured], dtype=np.float64),
        head_step_S=head_step_S,
        head_ratio_SLN=head_ratio_SLN,
        collapse_step=collapse_step(step_S, ratio_S, head_step_S, head_ratio_SLN),
        rank_collapse_step=rank_collapse_step(step_S, ratio_S, cosine_step_S, cosine_SL),
    )


def collapse_step(step_S: Steps, ratio_S: Series, head_step_S: Steps, head_ratio_SLN: Series) -> int | None:
    """First monitored step at which attention entropy has collapsed (definition above), or None."""
    if head_step_S.size:
        share_S = (head_ratio_SLN < HEAD_RATIO).reshape(head_step_S.size, -1).mean(axis=1)
        steps = head_step_S[share_S > HEAD_SHARE]
    else:
        steps = step_S[ratio_S < MEAN_RATIO]
    return int(steps[0]) if steps.size else None


def rank_collapse_step(step_S: Steps, ratio_S: Series, cosine_step_S: Steps, cosine_SL: Series) -> int | None:
    """First step of the first `RANK_STEPS` at which the rank had collapsed (definition above), or None."""
    steps, at_entropy, at_cosine = np.intersect1d(step_S, cosine_step_S, return_indices=True)
    if not steps.size:
        return None
    here_S = (cosine_SL[at_cosine].max(axis=1) >= TOKEN_COSINE) & (ratio_S[at_entropy] >= UNIFORM_RATIO)
    since = None
    for step, here in zip(steps, here_S, strict=True):
        since = None if not here else step if since is None else since
        if since is not None and step - since >= RANK_STEPS:
            return int(since)
    return None


def read_arrays(run_dir: Path, *names: str) -> list[tuple[Steps, Series]]:
    """For each name the steps (S,) at which signals/ has it and the values (S, ...); every file is opened once.

    Raises: DataError for a damaged file.
    """
    found: dict[str, dict[int, Any]] = {name: {} for name in names}
    for path in sorted((run_dir / SIGNALS).glob("step-*.npz")):
        try:
            with np.load(path, allow_pickle=False) as arrays:
                for name in set(names) & set(arrays.files):
                    found[name][int(path.stem.removeprefix("step-"))] = arrays[name]
        except (OSError, EOFError, ValueError, zipfile.BadZipFile):
            raise DataError(f"{path}: damaged; delete {run_dir} and run it again") from None
    return [(np.array(list(of), dtype=np.int64), _stacked(list(of.values()))) for of in found.values()]


def _stacked(values: Sequence[Series]) -> Series:
    return np.stack(values) if values else np.empty((0,))


def _text(path: Path) -> str | None:
    return path.read_text(encoding="utf-8").strip() if path.exists() else None
