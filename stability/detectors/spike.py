"""Spikes of the loss and of the gradient norm."""

import math
from collections.abc import Iterator
from typing import Any, Literal

import numpy as np

from configs.stability import LossSpikeConfig
from stability.alarms import Alarm, Severity
from stability.detectors.base import Detector, Observation

QUICK_WINDOW, QUICK_MINIMUM, QUICK_SIGMAS = 128, 64, 6.0
"""OLMo-core's rule for leaving out a step; it sees spikes while the long window still holds the steep first loss."""
LEAST = math.log(20.0)  # of a gradient norm over its mean
TINY = 1e-30  # a gradient norm of exactly 0 has a logarithm all the same


class Spike(Detector):
    """A number far above its recent mean.

    In plain words: the loss of this step cannot be explained by the scatter of the steps before. Two rules, either of
    which is enough: OLMo 2's spike score (7 standard deviations above the mean of the preceding 1,000) and OLMo-core's
    skip rule (6 of the last 128). Their share of all steps is the run's spike score. A spike whose update the guard
    left out is a warning: nothing is broken.
    Gradient norms scatter by factors: by the rules as published, every third run of 500 steps whose norms are
    log-normal with a sd of 0.5 has a spike. So it is their logarithm that is compared, and 20 times the mean is the
    least that counts: healthy small runs have batches of 4 to 12 times the mean, 9 sd away even so.
    Sources: OLMo 2 (2024), section 3; OLMo-core, SkipStepOptimizer.
    """

    def __init__(self, name: str, series: Literal["loss", "grad_norm"], config: LossSpikeConfig) -> None:
        self.name, self._series = name, series
        self._long = RollingScatter(config.window)
        self._quick = RollingScatter(QUICK_WINDOW)
        self._rules = [
            (self._long, config.minimum, config.sigmas),
            (self._quick, QUICK_MINIMUM, QUICK_SIGMAS),
        ]

    def observe(self, seen: Observation) -> Iterator[Alarm]:
        value = getattr(seen, self._series)
        if not math.isfinite(value):
            return  # the divergence detector's business; it would poison every mean after it
        by_factors = self._series == "grad_norm"
        label, least = ("gradient norm", LEAST) if by_factors else ("loss", 0.0)
        severity: Severity = "alarm" if seen.kept else "warning"
        place = math.log(max(value, TINY)) if by_factors else value
        for scatter, minimum, sigmas in self._rules:
            if len(scatter) < minimum:
                continue
            mean, sd = scatter.statistics()
            limit = mean + max(sigmas * sd, least)
            if sd > 0 and place > limit:
                away = (place - mean) / sd
                mean, limit = (math.exp(mean), math.exp(limit)) if by_factors else (mean, limit)
                reason = f"{label} {value:.4g} is {away:.1f} sd above the mean {mean:.4g} of {len(scatter)} steps"
                yield Alarm(self.name, seen.step, severity, reason, value, limit)
                break
        for scatter, _, _ in self._rules:
            scatter.add(place)

    def state(self) -> dict[str, Any]:
        return {"long": self._long.values(), "quick": self._quick.values()}

    def load(self, state: dict[str, Any]) -> None:
        self._long.replace(state["long"])
        self._quick.replace(state["quick"])


class RollingScatter:
    """The last values, with their mean and standard deviation (n - 1).

    Formed anew from the values each time they are read: a running sum would depend on where a resumed run began.
    """

    def __init__(self, size: int) -> None:
        self._values = np.empty(size)
        self._seen = 0

    def __len__(self) -> int:
        return min(self._seen, len(self._values))

    def add(self, value: float) -> None:
        """One more value; the oldest goes."""
        self._values[self._seen % len(self._values)] = value
        self._seen += 1

    def statistics(self) -> tuple[float, float]:
        """(mean, standard deviation) of what is there, at least one value."""
        known = self._oldest_first()
        return float(known.mean()), float(known.std(ddof=1)) if len(known) > 1 else 0.0

    def values(self) -> list[float]:
        """Oldest first."""
        return self._oldest_first().tolist()

    def replace(self, values: list[float]) -> None:
        """These values instead, oldest first (the newest of them, where they are too many)."""
        self._seen = 0
        for value in values[-len(self._values) :]:
            self.add(value)

    def _oldest_first(self) -> np.ndarray:
        """In this order, so that sums do not depend on where in the buffer a resumed run began."""
        size = len(self._values)
        return np.roll(self._values, -(self._seen % size)) if self._seen >= size else self._values[: self._seen]
