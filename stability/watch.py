"""What the loop asks about its own health: guard, detectors, flight recorder and policy of one run.

Every rank has its own `Watch`, sees the same numbers and comes to the same answers.
"""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from configs.schema import Config
from stability.alarms import Alarm
from stability.detectors import Detectors, Observation
from stability.detectors.base import Arrays
from stability.flight import FlightRecorder
from stability.guard import Guard, Judgement
from stability.policy import Decision, Policy
from stability.rewind import Rewinds

Report = Callable[..., None]
"""Told (step, kind, reason, **details) of an event; writes it down on the logging rank."""

HURT = ("loss_spike", "grad_spike", "divergence", "non_finite", "entropy_collapse", "logit_explosion")
"""Alarms that an early warning can be early for."""


class Watch:
    """Judges each update before it is made and each step after it; keeps the record of what led to an alarm."""

    def __init__(self, config: Config, device: torch.device, flight: FlightRecorder, report: Report) -> None:
        self._config, self._flight, self._report = config, flight, report
        rules = config.stability
        self._guard = Guard(rules.skip, rules.zclip, config.optimizer.clip, device)
        self._detectors = Detectors(rules.detectors)
        self._policy = Policy(rules.policy)
        self._skips = 0
        self._skips_in_a_row = 0
        self._zoom_until = 0
        self._warned_at: int | None = None
        self._records = 0
        self._recorded: list[Alarm] = []
        self._complete_at = 0

    @property
    def skips(self) -> int:
        """Updates left out so far."""
        return self._skips

    def zooms(self, updates: int) -> bool:
        """Whether the step after `updates` is measured because there was an alarm shortly before."""
        return updates < self._zoom_until

    def lr(self, updates: int, lr: float) -> float:
        """The learning rate of the update after `updates`: the schedule's, or less."""
        return self._policy.lr(updates, lr)

    def judge(self, totals_N: Tensor) -> Callable[[Tensor], Judgement]:
        """For `Engine.step`: what to do with the gradients of a step with (loss, requests to stop, ...) `totals_N`."""
        return lambda norm: self._guard.judge(totals_N, norm)

    def observe(self, step: int, judged: Judgement, arrays: Arrays, rewinds: Rewinds) -> Decision:
        """Look at update `step` (from 1), tell what is wrong with it, and decide. Collective when there is an alarm."""
        alarms = self._detectors.observe(Observation(step, judged.loss, judged.grad_norm, judged.keep, arrays))
        for alarm in alarms:
            self._report(step, "alarm", alarm.reason, **alarm.details(), **self._lead(alarm))
        self._tell_treatment(step, judged)
        if alarms:
            self._zoom_until = step + self._config.monitoring.zoom_steps
        self._keep_record(step, alarms)
        decision = self._policy.decide(alarms, len(rewinds))
        limit = self._config.stability.skip.limit
        if self._skips_in_a_row > limit:
            decision = Decision(
                "stop", f"{self._skips_in_a_row} updates left out one after another, {limit} are allowed"
            )
        if decision.action == "lower_lr":
            rules = self._config.stability.policy
            reason = f"{decision.reason}: learning rate x {rules.lr_factor:g} for {rules.lr_steps} steps"
            self._report(step, "lower_lr", reason)
        return decision

    def finish(self) -> None:
        """Complete the record of an alarm shortly before the end. Collective if there was one."""
        if self._recorded:
            self._write()
            self._recorded = []

    def rolled_back(self, state: dict[str, Any], step: int) -> None:
        """Go on from the checkpoint of `step` with its state; records and their number stay."""
        self.finish()
        self.load(state)
        self._flight.rollback(step)

    def state(self) -> dict[str, Any]:
        """What a resumed run needs, as JSON values: the same on every rank."""
        return {
            "guard": self._guard.state(),
            "detectors": self._detectors.state(),
            "policy": self._policy.state(),
            "skips": self._skips,
            "skips_in_a_row": self._skips_in_a_row,
            "zoom_until": self._zoom_until,
            "warned_at": self._warned_at,
            "records": self._records,
        }

    def load(self, state: dict[str, Any]) -> None:
        """Go on from `state`; an empty one is that of a run which had no watch."""
        if not state:
            return
        self._guard.load(state["guard"])
        self._detectors.load(state["detectors"])
        self._policy.load(state["policy"])
        self._skips, self._skips_in_a_row = state["skips"], state["skips_in_a_row"]
        self._zoom_until, self._warned_at = state["zoom_until"], state["warned_at"]
        self._records = max(self._records, state["records"])

    def _lead(self, alarm: Alarm) -> dict[str, int]:
        """How many steps before this alarm the early warning came, if one did."""
        if alarm.detector == "early_warning":
            self._warned_at = alarm.step if self._warned_at is None else self._warned_at
        elif alarm.detector in HURT and self._warned_at is not None:
            return {"lead_steps": alarm.step - self._warned_at}
        return {}

    def _tell_treatment(self, step: int, judged: Judgement) -> None:
        if judged.keep:
            self._skips_in_a_row = 0
        else:
            self._skips += 1
            self._skips_in_a_row += 1
            reason = f"update left out: loss {judged.loss:.4g}, gradient norm {judged.grad_norm:.4g}"
            self._report(step, "skip", reason, loss=judged.loss, grad_norm=judged.grad_norm)
        if judged.keep and math.isfinite(judged.clipped_to):
            reason = f"gradient norm {judged.grad_norm:.4g} clipped to {judged.clipped_to:.4g} by its z-score"
            self._report(step, "clip", reason, grad_norm=judged.grad_norm, clipped_to=judged.clipped_to)

    def _keep_record(self, step: int, alarms: list[Alarm]) -> None:
        """Write what led to the first of some alarms at once, and again when what followed is in it too."""
        if self._recorded:
            self._recorded += alarms
            if step >= self._complete_at:
                self._write()
                self._recorded = []
        elif alarms and self._records < self._config.monitoring.records:
            self._records += 1
            self._recorded, self._complete_at = alarms, step + self._config.monitoring.zoom_steps
            path = self._write()
            if path is not None:
                self._report(step, "spike_record", f"what led to it is in {path.name}", path=path.name)
            if step >= self._complete_at:
                self._recorded = []

    def _write(self) -> Path | None:
        return self._flight.write(self._recorded)
