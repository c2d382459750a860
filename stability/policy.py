"""What is done about alarms: one place, the same decision on every rank."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from configs.stability import Action, PolicyConfig
from stability.alarms import Alarm

RULES = {"frozen_head": "gradient", "shard": "gradient"}
"""Detectors that follow another one's rule."""

STRENGTH: dict[Action, int] = {"warn": 0, "lower_lr": 1, "rollback": 2, "stop": 3}


@dataclass(frozen=True)
class Decision:
    """What to do after a step, and why."""

    action: Action
    reason: str
    alarm: Alarm | None = None


CALM = Decision("warn", "")


class Policy:
    """Turns alarms into actions, within the limits of `stability.policy`.

    The number of rollbacks is not part of its state: it must survive them (`stability.rewind`).
    """

    def __init__(self, config: PolicyConfig) -> None:
        self._config = config
        self._lowered = 0
        self._lowered_until = 0

    def decide(self, alarms: Sequence[Alarm], rollbacks: int) -> Decision:
        """The strongest action that the rules of these alarms ask for; `rollbacks`: made so far."""
        decision = CALM
        for alarm in alarms:
            action, reason = self._allowed(self._rule(alarm), alarm, rollbacks)
            if STRENGTH[action] > STRENGTH[decision.action]:
                decision = Decision(action, reason, alarm)
        if decision.action == "lower_lr":
            assert decision.alarm is not None
            self._lowered += 1
            self._lowered_until = decision.alarm.step + self._config.lr_steps
        return decision

    def lr(self, updates: int, lr: float) -> float:
        """The learning rate of the update after `updates`."""
        return lr * self._config.lr_factor if updates < self._lowered_until else lr

    def state(self) -> dict[str, Any]:
        """What a resumed run needs, as JSON values."""
        return {"lowered": self._lowered, "lowered_until": self._lowered_until}

    def load(self, state: dict[str, Any]) -> None:
        """Go on from `state`."""
        self._lowered, self._lowered_until = state["lowered"], state["lowered_until"]

    def _rule(self, alarm: Alarm) -> Action:
        if alarm.detector in ("loss_spike", "grad_spike", "non_finite") and alarm.severity == "warning":
            return "warn"  # the guard left the update out: nothing is broken
        if alarm.detector == "logit_explosion" and alarm.severity != "fatal":
            return "warn"
        rule: Action = getattr(self._config, RULES.get(alarm.detector, alarm.detector))
        return rule

    def _allowed(self, action: Action, alarm: Alarm, rollbacks: int) -> tuple[Action, str]:
        """The action, or what takes its place once its limit is reached."""
        config = self._config
        if action == "lower_lr" and self._lowered >= config.lr_limit:
            return "warn", alarm.reason
        if action == "rollback" and rollbacks >= config.rollback_limit:
            return "stop", f"{alarm.reason}; rolled back {rollbacks} times already"
        return action, alarm.reason
