"""What a run's measurements say now: every layer's attention, the outermost matrices, and what moved first.

Letters: S measured steps, L layers, A heads, M matrices.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np

from configs.stability import DetectorsConfig
from monitoring.crossings import Crossing, first_crossings
from monitoring.history import History, Steps, Values

FOLLOWERS = 4
"""Layers named after the first."""


class Outermost(NamedTuple):
    """One quantity over all matrices at the newest measurement: the largest |value| and whose it is."""

    quantity: str
    matrix: str
    value: float
    median: float


@dataclass(frozen=True)
class Move:
    """A limit that was passed: where first, and which layers followed."""

    what: str
    crossings: list[Crossing]

    @property
    def step(self) -> int:
        return self.crossings[0].step

    def __str__(self) -> str:
        first, *rest = self.crossings
        followed = ", ".join(f"{crossing.layer} at {crossing.step:,}" for crossing in rest[:FOLLOWERS])
        more = f" and {len(rest) - FOLLOWERS} more" if len(rest) > FOLLOWERS else ""
        then = f"; then layer {followed}{more}" if rest else ""
        return f"{first.place} at step {first.step:,}: {self.what}{then}"


@dataclass(frozen=True)
class Findings:
    """Taken from a history once per measurement; arrays are empty where the run has none."""

    step_S: Steps
    ratio_SLA: Values
    logit_S: Steps
    logit_SLA: Values
    cosine_S: Steps
    cosine_SL: Values
    matrices: list[Outermost]
    detectors: DetectorsConfig

    @classmethod
    def of(cls, history: History, detectors: DetectorsConfig) -> "Findings":
        """What the history has."""
        return cls(
            *history.signal("entropy_ratio"),
            *history.signal("max_logit"),
            *history.signal("token_cosine"),
            [found for name in ("sigma", "gamma") if (found := _outermost(history, name)) is not None],
            detectors,
        )

    @cached_property
    def lowest_SL(self) -> Values:
        """Entropy of each layer's lowest head; NaN where all are."""
        return np.fmin.reduce(self.ratio_SLA, axis=2)

    @cached_property
    def collapses(self) -> list[Crossing]:
        """Each layer's first collapsed head, earliest first."""
        return first_crossings(self.step_S, self.ratio_SLA, self.detectors.entropy.floor, below=True)

    @cached_property
    def moves(self) -> list[Move]:
        """The limits that were passed, earliest first."""
        limits = self.detectors
        logit = first_crossings(self.logit_S, self.logit_SLA, limits.logit.warning, below=False)
        cosine = first_crossings(
            self.cosine_S, self.cosine_SL, limits.rank.cosine, below=False, lasting=limits.rank.steps
        )
        lost = first_crossings(self.step_S, np.isnan(self.ratio_SLA).astype(float), 0.5, below=False)
        moves = [
            Move("attention entropy is not a number", lost),
            Move(f"attention entropy under {limits.entropy.floor:.0%} of its maximum", self.collapses),
            Move(f"attention logit over {limits.logit.warning:,.0f}", logit),
            Move(f"tokens alike (cosine over {limits.rank.cosine:g})", cosine),
        ]
        return sorted((move for move in moves if move.crossings), key=lambda move: move.step)

    def calm(self) -> str:
        """How far from any limit, where none was passed."""
        if not self.step_S.size:
            return "nothing measured yet"
        if not np.isfinite(self.ratio_SLA[-1]).any():
            return "attention entropy is not a number"
        layer, head = np.unravel_index(np.nanargmin(self.ratio_SLA[-1]), self.ratio_SLA[-1].shape)
        ratio = self.ratio_SLA[-1, layer, head]
        return f"nothing; the lowest entropy is layer {layer} head {head}'s, {ratio:.0%} of its maximum"


def _outermost(history: History, name: str) -> Outermost | None:
    step_S, value_SM = history.signal(name)
    if not step_S.size or value_SM.shape[1] != len(history.matrices):
        return None
    size_M = np.abs(value_SM[-1])
    if not np.isfinite(size_M).any():
        return None
    matrix = int(np.nanargmax(size_M))
    return Outermost(name, history.matrices[matrix], float(value_SM[-1, matrix]), float(np.nanmedian(size_M)))
