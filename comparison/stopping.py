"""Early stopping of hopeless trials, judged by the training loss that they have written so far.

Once the share `after` of its steps is done, a trial is ended
- *above_initial*: when the loss of that many consecutive steps was above the loss of step 1. By the study's definition
  it would count as its initial loss (the clipping of Wortsman et al. 2023, section 2), and does so now; only a trial
  that would have recovered below it is judged otherwise than it deserves.
- *behind*: when its loss, the mean of its last 20 logged steps, is more than so many nats above that of the best trial
  of the same recipe, shape and seed at the same step, finished or running. Its loss is then where it was stopped: what
  is computed from it (LR sensitivity) is a bound.
"""

import math
import os
from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from comparison.study import Trial
from comparison.study_file import StoppingRule
from monitoring.history import Tail
from monitoring.recorder import METRICS

SMOOTHED_STEPS = 20


@dataclass(frozen=True)
class Stopped:
    """A trial that was ended early, as its stopped.json has it; `rule` is above_initial or behind, losses in nats."""

    step: int
    loss: float
    """Mean training loss of the last logged steps, 20 at most."""
    initial_loss: float
    rule: str
    reason: str


class Curve:
    """The training loss of one run as it grows; each `update` reads what was written since the last one."""

    def __init__(self, run_dir: Path, since: float = 0.0) -> None:
        """`since`: seconds since 1970; an older file is of an earlier attempt, which is about to be deleted."""
        self._path, self._since = run_dir / METRICS, since
        self._tail = Tail(self._path)
        self._steps, self._losses = array("q"), array("d")

    @property
    def step(self) -> int:
        """The newest step; 0 before the first."""
        return self._steps[-1] if self._steps else 0

    @property
    def initial(self) -> float:
        return self._losses[0]

    def update(self) -> None:
        """Read on."""
        try:
            if os.stat(self._path).st_mtime < self._since:
                return
        except FileNotFoundError:
            return
        records = list(self._tail)
        if self._tail.began_again:
            self._cut(0)
            records = list(self._tail)
        for record in records:
            self._cut(record["step"])
            self._steps.append(record["step"])
            self._losses.append(float(record["loss"]))

    def last(self, count: int) -> Sequence[float]:
        """The losses of the newest `count` steps, or of as many as there are."""
        return self._losses[-count:]

    def smoothed(self, step: int) -> float | None:
        """Mean loss of the last 20 logged steps up to `step`, infinite where one is not finite; None before there are
        so many, or where the run has not come so far."""
        end = bisect_right(self._steps, step)
        if end < SMOOTHED_STEPS or self.step < step:
            return None
        return _mean(self._losses[end - SMOOTHED_STEPS : end])

    def _cut(self, step: int) -> None:
        """Forget `step` and what came after it: the run went back to a checkpoint."""
        if self._steps and self._steps[-1] >= step:
            at = bisect_left(self._steps, step)
            del self._steps[at:], self._losses[at:]


class Watch:
    """Looks at the trials of a sweep that has a rule."""

    def __init__(self, rule: StoppingRule, ended: Iterable[Trial]) -> None:
        """`ended`: trials with a result; of a rule that compares, they are the first to be compared with."""
        self._rule = rule
        self._curves = {trial: Curve(trial.config.run_dir) for trial in ended}

    def begin(self, trial: Trial, now: float) -> None:
        """A trial starts, at `now` seconds since 1970."""
        self._curves[trial] = Curve(trial.config.run_dir, now)

    def look(self, trial: Trial) -> Stopped | None:
        """Why a running trial is hopeless, or None while it is not."""
        curve = self._curves[trial]
        curve.update()
        steps = trial.config.training.steps
        if not self._rule.after * steps <= curve.step < steps:  # one that is done ends by itself
            return None
        return self._above_initial(curve) or self._behind(trial, curve)

    def _above_initial(self, curve: Curve) -> Stopped | None:
        count = self._rule.above_initial
        if count is None or curve.step <= count:
            return None
        if any(loss <= curve.initial for loss in curve.last(count)):  # a loss that is no number counts as above
            return None
        return _stopped(curve, "above_initial", f"loss above its first for {count} steps")

    def _behind(self, trial: Trial, curve: Curve) -> Stopped | None:
        own = curve.smoothed(curve.step)
        if self._rule.behind is None or own is None:
            return None
        best, rival = math.inf, trial
        for other, theirs in self._curves.items():
            if other is not trial and _pair(other) == _pair(trial):
                theirs.update()
                loss = theirs.smoothed(curve.step)
                if loss is not None and loss < best:
                    best, rival = loss, other
        if not own - best > self._rule.behind:  # infinity less infinity is no number
            return None
        return _stopped(curve, "behind", f"loss {own - best:.2f} nats behind that of learning rate {rival.lr:g}")


def _pair(trial: Trial) -> tuple[str, str, int]:
    return trial.recipe, trial.shape, trial.seed


def _stopped(curve: Curve, rule: str, reason: str) -> Stopped:
    return Stopped(curve.step, _mean(curve.last(SMOOTHED_STEPS)), curve.initial, rule, reason)


def _mean(losses: Sequence[float]) -> float:
    return math.fsum(losses) / len(losses) if all(map(math.isfinite, losses)) else math.inf
