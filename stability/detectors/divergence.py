"""Loss that is not finite, or worse than before training."""

import math
from collections.abc import Iterator
from typing import Any

from configs.stability import DivergenceConfig
from stability.alarms import Alarm, Severity
from stability.detectors.base import Detector, Observation


class NonFinite(Detector):
    """Loss or gradient norm is nan or infinite: an update with it destroys the weights.

    In plain words: some number of this step overflowed. It is no alarm of its own where the guard left the update out.
    """

    name = "non_finite"

    def observe(self, seen: Observation) -> Iterator[Alarm]:
        for label, value in (("loss", seen.loss), ("gradient norm", seen.grad_norm)):
            if not math.isfinite(value):
                severity: Severity = "fatal" if seen.kept else "warning"
                yield Alarm(self.name, seen.step, severity, f"{label} is not finite", value, math.inf)
                return

    def state(self) -> dict[str, Any]:
        return {}

    def load(self, state: dict[str, Any]) -> None:
        pass


class Divergence(Detector):
    """The loss stays above that of the first step.

    In plain words: the model has become worse than one that has not been trained.
    """

    name = "divergence"

    def __init__(self, config: DivergenceConfig) -> None:
        self._config = config
        self._first: float | None = None
        self._above = 0

    def observe(self, seen: Observation) -> Iterator[Alarm]:
        if not math.isfinite(seen.loss):
            return
        if self._first is None:
            self._first = seen.loss
        self._above = self._above + 1 if seen.loss > self._first else 0
        if self._above >= self._config.steps:
            reason = f"loss {seen.loss:.4g} is above {self._first:.4g}, that of the first step, for {self._above} steps"
            yield Alarm(self.name, seen.step, "alarm", reason, seen.loss, self._first)

    def state(self) -> dict[str, Any]:
        return {"first": self._first, "above": self._above}

    def load(self, state: dict[str, Any]) -> None:
        self._first, self._above = state["first"], state["above"]
