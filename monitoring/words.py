"""Events in words: what pictures and the terminal say of a line of events.jsonl."""

from collections.abc import Mapping
from typing import Any, Literal

Weight = Literal["bad", "warning", "action", "routine"]

BAD = ("diverged", "failed", "checkpoint_failed", "metrics_damaged")
WARNINGS = ("tracking_error", "alert_failed")
ACTIONS = ("skip", "clip", "lower_lr", "rollback", "stop")
WEIGHT_OF_SEVERITY: dict[str, Weight] = {"fatal": "bad", "alarm": "bad", "warning": "warning"}


def name_of(event: Mapping[str, Any]) -> str:
    """What happened, in a word or two: an alarm is called by its detector."""
    kind = event["detector"] if event["kind"] == "alarm" and "detector" in event else event["kind"]
    return str(kind).replace("_", " ")


def weight_of(event: Mapping[str, Any]) -> Weight:
    """How much it matters."""
    kind = event["kind"]
    if kind == "alarm":
        return WEIGHT_OF_SEVERITY.get(event.get("severity", "alarm"), "bad")
    if kind in BAD:
        return "bad"
    return "warning" if kind in WARNINGS else "action" if kind in ACTIONS else "routine"


def place_of(event: Mapping[str, Any]) -> str:
    """The place an alarm points to, such as `layer 0 head 2`; empty where it is the whole model."""
    where = event.get("where")
    return " ".join(f"{key} {value}" for key, value in where.items()) if isinstance(where, Mapping) else ""
