"""What a detector says."""

from dataclasses import asdict, dataclass, field
from typing import Any, Literal

Severity = Literal["warning", "alarm", "fatal"]
"""`warning`: before the loss has moved; `alarm`: training is hurt; `fatal`: it cannot go on as it is."""


@dataclass(frozen=True)
class Alarm:
    """One detector's finding at one step, the same on every rank."""

    detector: str
    step: int
    """Updates done, from 1."""
    severity: Severity
    reason: str
    """One line for a reader who knows the run and not the detector."""
    value: float
    threshold: float
    where: dict[str, int | str] = field(default_factory=dict)
    """The place it points to: layer, head, matrix, rank; empty when it is the whole model."""

    def details(self) -> dict[str, Any]:
        """Everything but step and reason: what an event adds to its own."""
        fields = asdict(self)
        del fields["step"], fields["reason"]
        return fields
