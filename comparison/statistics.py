"""Means over seeds with intervals, and paired comparisons: numbers in, numbers out, nothing of studies.

Which interval decides
- The *bootstrap interval* of a mean (percentile method, Efron 1979) is shown beside it, and decides nothing: from three
  seeds it is far too narrow (it cannot leave the range of the three values, and covers the mean in about 75 % of cases
  instead of 95 %).
- A *difference* is the mean of the differences seed by seed: two recipes of one seed read the same data in the same
  order, so what the seed does to both cancels. Its 95 % interval and p-value are those of the paired t-test (Student
  1908), which knows how little few seeds say. (A sign-flip test of 3 seeds has p >= 25 %, whatever the data.)
- A difference is *shown* if its p-value is below 5 % after the correction for the number of comparisons (Holm 1979),
  its interval excludes 0, and it is at least `SMALLEST_NATS`. Anything else is "no difference shown", which is not
  "no difference".
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from scipy import stats
from scipy.special import stdtr, stdtrit

LEVEL = 0.05
RESAMPLES = 2000
SMALLEST_NATS = 0.005
"""The smallest difference worth naming: a perplexity half a per cent higher (e^0.005). Less would change nobody's
choice of a recipe, however surely it is measured."""


@dataclass(frozen=True)
class Estimate:
    """A mean over seeds; `values` are the seeds' finite or infinite numbers, NaN left out."""

    values: tuple[float, ...]
    bound: bool = False
    """Whether the mean is only an upper bound: some of the values are of trials stopped before their end."""

    @classmethod
    def of(cls, values: Iterable[float], *, bound: bool = False) -> "Estimate":
        return cls(tuple(float(value) for value in values if not math.isnan(value)), bound)

    @property
    def count(self) -> int:
        return len(self.values)

    @property
    def mean(self) -> float:
        return math.fsum(self.values) / self.count if self.values else math.nan

    @property
    def sd(self) -> float | None:
        """Sample standard deviation; None for fewer than two seeds."""
        return float(np.std(self.values, ddof=1)) if self.count > 1 and math.isfinite(self.mean) else None

    @cached_property
    def interval(self) -> tuple[float, float] | None:
        """95 % bootstrap interval of the mean; None for fewer than two seeds. The same numbers at every call."""
        if self.sd is None:
            return None
        if self.sd == 0.0:
            return self.mean, self.mean
        drawn = stats.bootstrap(
            (np.array(self.values),),
            np.mean,
            n_resamples=RESAMPLES,
            confidence_level=1 - LEVEL,
            method="percentile",
            rng=np.random.default_rng(0),
        )
        return float(drawn.confidence_interval.low), float(drawn.confidence_interval.high)

    def __format__(self, spec: str) -> str:
        """`2.458 [2.431, 2.480]`; `2.458` for one seed; `-` for none; `≤` before what is only a bound."""
        if not self.values:
            return "-"
        mean = f"{'≤ ' if self.bound else ''}{self.mean:{spec}}"
        if self.interval is None:
            return mean
        return f"{mean} [{self.interval[0]:{spec}}, {self.interval[1]:{spec}}]"


@dataclass(frozen=True)
class Difference:
    """Mean difference of two things measured with the same seeds, `first` minus `second`."""

    first: str
    second: str
    mean: float
    low: float
    """Lower end of the 95 % interval of the paired t-test."""
    high: float
    p: float
    """Two-sided p-value of the paired t-test; after `holm`, corrected for the number of comparisons."""
    count: int
    """Seeds that both have."""
    bound: bool = False
    """Whether one of the two is known only as a bound; such a difference is never shown."""

    @property
    def excludes_zero(self) -> bool:
        return not self.bound and (self.low > 0 or self.high < 0)

    @property
    def shown(self) -> bool:
        return self.excludes_zero and self.p < LEVEL and abs(self.mean) >= SMALLEST_NATS

    def __format__(self, spec: str) -> str:
        """`-0.094 [-0.120, -0.068]`, the sign always written."""
        return f"{self.mean:+{spec}} [{self.low:+{spec}}, {self.high:+{spec}}]"


def paired(
    first: str, second: str, of_first: Sequence[float], of_second: Sequence[float], *, bound: bool = False
) -> Difference | None:
    """The difference of two sequences, value k of both of the same seed; None for fewer than two pairs of numbers.

    Differences that are all the same (zero variance) have p = 0, or 1 where they are all zero.
    """
    with np.errstate(invalid="ignore"):  # infinity less infinity is no number, and left out
        gaps = np.asarray(of_first, dtype=np.float64) - np.asarray(of_second, dtype=np.float64)
    gaps = gaps[np.isfinite(gaps)]
    if gaps.size < 2:
        return None
    mean = float(gaps.mean())
    if np.ptp(gaps) == 0:
        return Difference(first, second, mean, mean, mean, 1.0 if mean == 0 else 0.0, gaps.size, bound)
    freedom, error = gaps.size - 1, float(gaps.std(ddof=1)) / math.sqrt(gaps.size)
    reach = float(stdtrit(freedom, 1 - LEVEL / 2)) * error
    p = 2 * float(stdtr(freedom, -abs(mean) / error))
    return Difference(first, second, mean, mean - reach, mean + reach, p, gaps.size, bound)


def holm(differences: Sequence[Difference], counted: int = 1) -> list[Difference]:
    """The same differences with p-values corrected for being several (Holm 1979): the chance of showing any that does
    not exist is at most 5 %, however the comparisons depend on each other. Each is `counted` as so many."""
    order = sorted(range(len(differences)), key=lambda index: differences[index].p)
    corrected, least = list(differences), 0.0
    for rank, index in enumerate(order):
        least = max(least, min(1.0, counted * (len(order) - rank) * differences[index].p))
        corrected[index] = replace(differences[index], p=least)
    return corrected
