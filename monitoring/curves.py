"""Curves of many points in little space: fewer points for the same picture, and when an axis must be logarithmic."""

import numpy as np

from monitoring.history import Steps, Values

POINTS = 2000
"""More than a picture has columns of pixels."""
HUGE = 8.0
"""Highest over lowest value from which an axis is logarithmic."""


def thin(step_S: Steps, value_S: Values, points: int = POINTS) -> tuple[Steps, Values]:
    """At most about `points` of S points, with the lowest and highest of every stretch, in order of step.

    Values that are no numbers are left out where others are in their stretch.
    """
    if step_S.size <= points:
        return step_S, value_S
    kept = []
    for begin, end in stretches(step_S.size, points // 2):
        part_S = value_S[begin:end]
        if np.isnan(part_S).all():
            kept.append(begin)
        else:
            kept += [begin + int(np.nanargmin(part_S)), begin + int(np.nanargmax(part_S))]
    index = np.unique([0, *kept, step_S.size - 1])
    return step_S[index], value_S[index]


def stretches(size: int, count: int) -> list[tuple[int, int]]:
    """`size` points cut into `count` (or fewer) runs of nearly equal length: begin and end of each."""
    borders = np.unique(np.linspace(0, size, count + 1).round().astype(int))
    return list(zip(borders[:-1].tolist(), borders[1:].tolist(), strict=True))


def is_huge(value_S: Values) -> bool:
    """Whether spikes would press the rest of the curve flat."""
    finite_S = value_S[np.isfinite(value_S)]
    return bool(finite_S.size and finite_S.min() > 0 and finite_S.max() > HUGE * finite_S.min())
