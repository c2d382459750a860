"""What a rerun of the steps before an alarm says about its cause.

Shapes: S steps that were recorded and rerun, up to that of the alarm.
"""

import math
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from stability.record import Record, Track

SAME, SINGLE = "the run's own layout", "one process"
LOSS_RTOL, NORM_RTOL = 0.02, 0.2
"""How near loss and gradient norm must come to the recorded ones: layouts round differently, and that grows."""
EQUAL_RTOL = 1e-3
"""Relative difference of the loss below which a step counts as the same."""
SHARE = 0.5
"""A spike also counts as reproduced if it has this share of the recorded height above the steps before."""
HEIGHT = 0.05
"""Least height of a spike of the loss, and of the logarithm of the norm, for that."""


@dataclass(frozen=True)
class Rerun:
    """The steps of a record, run again."""

    layout: str
    began: str
    """Where it began: a checkpoint's name, or `the start`."""
    loss: Track
    grad_norm: Track
    sample_losses: dict[int, float] = field(default_factory=dict)
    """Loss of each sample of the alarm's batch under the weights before that step, by sample id."""

    @property
    def last_step(self) -> int:
        """The last step it reached."""
        return int(self.loss.steps[-1]) if len(self.loss.steps) else 0

    def worst_sample(self) -> tuple[int, float] | None:
        """(id, loss) of the sample with the largest loss; one that is not finite is the worst."""
        if not self.sample_losses:
            return None
        ranked = ((math.inf if math.isnan(loss) else loss, k) for k, loss in self.sample_losses.items())
        worst = max(ranked)[1]
        return worst, self.sample_losses[worst]


@dataclass(frozen=True)
class Comparison:
    """A rerun beside the record."""

    rerun: Rerun
    reproduced: bool
    recorded: tuple[float, float]
    """Loss and gradient norm at the alarm's step."""
    seen: tuple[float, float]
    """The same of the rerun; NaN if it did not come so far."""
    differs_at: int | None
    """The first step whose loss is another one; None: all are the same."""


def compare(record: Record, rerun: Rerun) -> Comparison:
    """Whether a rerun shows what the record shows at the alarm's step."""
    step = record.alarm.step
    names = ("loss", "grad_norm")
    tracks = [(record.tracks[name].upto(step), getattr(rerun, name).upto(step)) for name in names]
    recorded_2, seen_2 = ([_at(track, step) for track in pair] for pair in zip(*tracks, strict=True))
    finite = all(map(math.isfinite, recorded_2))
    if rerun.last_step < step:
        reproduced = False
    elif not finite:
        reproduced = not all(map(math.isfinite, seen_2))
    else:
        reproduced = _agrees(*tracks[0], LOSS_RTOL, log=False) and _agrees(*tracks[1], NORM_RTOL, log=True)
    return Comparison(
        rerun, reproduced, (recorded_2[0], recorded_2[1]), (seen_2[0], seen_2[1]), _first_difference(*tracks[0])
    )


def verdict(same: Comparison | None, single: Comparison | None, *, layout_is_single: bool) -> str:
    """What the reruns together say about the cause, in one or two sentences."""
    if layout_is_single:
        assert same is not None
        if same.reproduced:
            return "Reproduced: the model or the data are unstable here (one process: no parallelism is involved)."
        return "Not reproduced by the same process: suspect the hardware, or a computation that is not deterministic."
    if same is not None and single is not None:
        if same.reproduced and single.reproduced:
            return "Reproduced in both layouts: the model or the data are unstable here, whatever the parallelism."
        if same.reproduced:
            return "Reproduced in the run's own layout and not by one process: suspect a bug of the parallelism."
        if single.reproduced:
            return (
                "Reproduced by one process and not in the run's own layout: the layout does not repeat itself; suspect "
                "a race between ranks or the hardware."
            )
        return "Reproduced by neither: suspect the hardware of the recorded run (a rank may be named above)."
    only = same or single
    assert only is not None
    other = SINGLE if only is same else SAME
    done = "Reproduced" if only.reproduced else "Not reproduced"
    return f"{done} in {only.rerun.layout}; what that means, a rerun in {other} would tell too."


def _agrees(recorded: Track, seen: Track, rtol: float, *, log: bool) -> bool:
    """The last value is near the recorded one, or both stand out from the steps before."""
    then, now = float(recorded.values[-1]), float(seen.values[-1])
    if not math.isfinite(now):
        return False
    if abs(now - then) <= rtol * abs(then):
        return True
    heights = [_height(track, log=log) for track in (recorded, seen)]
    return heights[0] > HEIGHT and heights[1] >= SHARE * heights[0]


def _height(track: Track, *, log: bool) -> float:
    """How far the last value is above the median of those before, relative to it; of logarithms their difference."""
    values: NDArray[np.float64] = np.asarray(track.values, dtype=np.float64)
    before = values[:-1][np.isfinite(values[:-1])]
    if len(before) == 0 or np.median(before) <= 0:
        return 0.0
    ratio = float(values[-1] / np.median(before))
    return math.log(max(ratio, 1e-30)) if log else ratio - 1


def _first_difference(recorded: Track, seen: Track) -> int | None:
    then = dict(zip(recorded.steps.tolist(), recorded.values.tolist(), strict=True))
    for step, value in zip(seen.steps.tolist(), seen.values.tolist(), strict=True):
        if step in then and not np.isclose(value, then[step], rtol=EQUAL_RTOL, atol=0, equal_nan=True):
            return step
    return None


def _at(track: Track, step: int) -> float:
    found = track.values[track.steps == step]
    return float(found[-1]) if len(found) else math.nan
