"""Fewer points for the same picture: extremes are kept, since they are what one looks for."""

import numpy as np

from monitoring.history import Steps, Values

POINTS = 2000
"""More than a picture has columns of pixels."""


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
