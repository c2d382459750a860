"""Means over seeds with their intervals."""

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats


class Interval(NamedTuple):
    """A mean over seeds and its 95 % interval, numbers or curves of any shape."""

    mean: NDArray[np.float64]
    low: NDArray[np.float64]
    high: NDArray[np.float64]

    def text(self, digits: int = 3) -> str:
        """`1.371 [1.352, 1.390]`, of a single number."""
        mean, low, high = (f"{float(end):.{digits}f}" for end in self)
        return f"{mean} [{low}, {high}]"

    def json(self) -> dict[str, object]:
        """Lists and numbers."""
        return {"mean": self.mean.tolist(), "low": self.low.tolist(), "high": self.high.tolist()}


def mean_interval(values: ArrayLike) -> Interval:
    """Student's interval of the mean over the first axis, (S, ...) -> (...); S at least 2 seeds."""
    values_S = np.asarray(values, dtype=np.float64)
    seeds = len(values_S)
    mean = values_S.mean(0)
    half = stats.t.ppf(0.975, seeds - 1) * values_S.std(0, ddof=1) / seeds**0.5
    return Interval(mean, mean - half, mean + half)
