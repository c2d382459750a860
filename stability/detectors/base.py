"""What detectors see and what they have in common."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from stability.alarms import Alarm

Arrays = Mapping[str, np.ndarray]
"""What a measured step showed (`monitoring.measure.Measurement.arrays`): name -> array."""


@dataclass(frozen=True)
class Observation:
    """One step after its update, the same on every rank."""

    step: int
    """Updates done, from 1."""
    loss: float
    grad_norm: float
    kept: bool = True
    """Whether the update was made; the guard may have left it out."""
    arrays: Arrays = field(default_factory=dict)
    """Empty on steps that were not measured."""


class Detector(ABC):
    """Watches the steps of one run for one kind of trouble.

    Its memory is saved with checkpoints: a resumed run raises the alarms that an uninterrupted one does.
    """

    name: str
    """What alarms, policies and the documentation call it."""

    @abstractmethod
    def observe(self, seen: Observation) -> Iterator[Alarm]:
        """Look at one more step; what is wrong with it."""

    @abstractmethod
    def state(self) -> dict[str, Any]:
        """Its memory in JSON values."""

    @abstractmethod
    def load(self, state: dict[str, Any]) -> None:
        """Go on with a memory that was saved."""
