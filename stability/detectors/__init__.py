"""Detectors: each watches the steps of a run for one kind of trouble, with a memory of its own."""

from collections.abc import Iterable
from typing import Any, get_args

from configs.stability import DetectorsConfig
from stability.alarms import Alarm, Severity
from stability.detectors.attention import EarlyWarning, EntropyCollapse, LogitExplosion, RankCollapse
from stability.detectors.base import Detector, Observation
from stability.detectors.divergence import Divergence, NonFinite
from stability.detectors.gradient import FrozenHead, MatrixGradient, Shard
from stability.detectors.spike import Spike

ONE_BY_ONE = ("gradient", "frozen_head", "shard")
"""Detectors whose alarms about two places are two pieces of news."""
SEVERITIES: tuple[Severity, ...] = get_args(Severity)  # in ascending order

__all__ = ["Detector", "Detectors", "Observation", "build_detectors"]


def build_detectors(config: DetectorsConfig) -> list[Detector]:
    """All of them, in the order in which their alarms are told."""
    return [
        NonFinite(),
        Shard(),
        Spike("loss_spike", "loss", config.spike),
        Spike("grad_spike", "grad_norm", config.spike),
        MatrixGradient(config.gradient),
        FrozenHead(config.gradient),
        LogitExplosion(config.logit),
        EntropyCollapse(config.entropy),
        EarlyWarning(config.entropy),
        RankCollapse(config.rank),
        Divergence(config.divergence),
    ]


class Detectors:
    """All detectors of a run. After an alarm, one stays silent about the same place for `cooldown` steps.

    An alarm of more severity is told all the same.
    """

    def __init__(self, config: DetectorsConfig, detectors: Iterable[Detector] | None = None) -> None:
        self._detectors = list(detectors) if detectors is not None else build_detectors(config)
        self._cooldown = config.cooldown
        self._told: dict[str, dict[Severity, int]] = {}

    def observe(self, seen: Observation) -> list[Alarm]:
        """The alarms of one step."""
        alarms = [alarm for detector in self._detectors for alarm in detector.observe(seen)]
        return [alarm for alarm in alarms if self._is_news(alarm)]

    def state(self) -> dict[str, Any]:
        """What a resumed run needs, as JSON values."""
        told = {place: dict(steps) for place, steps in self._told.items()}
        return {"told": told, "memory": {detector.name: detector.state() for detector in self._detectors}}

    def load(self, state: dict[str, Any]) -> None:
        """Go on from `state`; a detector that it does not know begins anew."""
        self._told = {place: dict(steps) for place, steps in state["told"].items()}
        for detector in self._detectors:
            if detector.name in state["memory"]:
                detector.load(state["memory"][detector.name])

    def _is_news(self, alarm: Alarm) -> bool:
        place = alarm.detector
        if alarm.detector in ONE_BY_ONE:
            place += "".join(f" {key} {value}" for key, value in sorted(alarm.where.items()))
        told = self._told.setdefault(place, {})
        as_severe = [told[severity] for severity in SEVERITIES[SEVERITIES.index(alarm.severity) :] if severity in told]
        if as_severe and alarm.step - max(as_severe) < self._cooldown:
            return False
        told[alarm.severity] = alarm.step
        return True
