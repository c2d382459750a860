"""One matrix, one head or one rank that does not do as its peers do.

Shapes: L layers, A query heads, M matrices, P tensor-parallel ranks, N measurements.
"""

from collections import deque
from collections.abc import Iterator
from typing import Any

import numpy as np

from configs.stability import GradientConfig
from stability.alarms import Alarm
from stability.detectors.base import Detector, Observation

TINY = 1e-30  # a gradient of exactly 0 has a logarithm all the same
WINDOW = 51
FROZEN_FOR = 2  # successive measurements: a head may get no gradient from one batch
SHARD_FACTOR = 10.0  # a head that gets no gradient stands still while those of other ranks grow
LARGE = 10.0  # times the median over all matrices, and the matrix's own latest measurements
RECENT = 3
SHARD_FACTOR_ALONE = 1e3  # without peers to compare with, only what training can not do
BROKEN = 1e6  # stands for the logarithm of what is not finite: farther from any other than they are from each other
LARGEST = 700.0  # logarithm of a number that fp64 holds


class MatrixGradient(Detector):
    """A matrix's gradient, beside those of the other matrices, is many times what it was.

    In plain words: the gradient of one layer is out of proportion. Each matrix's log norm, less the median over all
    matrices, is compared with its own rolling median: what changes all gradients together is no alarm. Nor is a
    gradient that only rises to what the others are, or past it step by step: queries and keys get almost none until
    tokens differ (Noci et al. 2022), and more than the others for a while then. A model of one matrix has no others to
    compare it with.
    """

    name = "gradient"

    def __init__(self, config: GradientConfig) -> None:
        self._config = config
        self._past: deque[list[float]] = deque(maxlen=WINDOW)

    def observe(self, seen: Observation) -> Iterator[Alarm]:
        if "grad_norm" not in seen.arrays or not np.isfinite(seen.arrays["grad_norm"]).all():
            return  # what is not finite is told by `non_finite`, and has no place in a median
        log_M = np.log(np.asarray(seen.arrays["grad_norm"], dtype=np.float64) + TINY)
        share_M = log_M - np.median(log_M)
        if len(self._past) >= self._config.minimum:
            rise_M = share_M - np.median(np.array(self._past), axis=0)
            latest_M = np.max(np.array(list(self._past)[-RECENT:]), axis=0)
            sudden_M = share_M > np.log(LARGE) + np.maximum(latest_M, 0.0)
            rise_M = np.where(sudden_M, rise_M, 0.0)
            worst = int(np.argmax(rise_M))
            times = float(np.exp(min(rise_M[worst], LARGEST)))
            if times > self._config.factor:
                matrix = str(seen.arrays["matrix"][worst])
                reason = f"gradient of {matrix}, beside the others, is {times:.3g} times what it was"
                yield Alarm(self.name, seen.step, "alarm", reason, times, self._config.factor, {"matrix": matrix})
        self._past.append(share_M.tolist())

    def state(self) -> dict[str, Any]:
        return {"past": list(self._past)}

    def load(self, state: dict[str, Any]) -> None:
        self._past.clear()
        self._past.extend(state["past"])


class FrozenHead(Detector):
    """A head whose queries get no gradient.

    In plain words: the head does not learn: its softmax is saturated, or its gradient is lost on the way. It is
    compared with the median head of its layer, or of the model where that one gets nothing either, and told once, when
    it stops learning.
    """

    name = "frozen_head"

    def __init__(self, config: GradientConfig) -> None:
        self._config = config
        self._frozen_for: list[list[int]] = []

    def observe(self, seen: Observation) -> Iterator[Alarm]:
        if "head_grad" not in seen.arrays or not np.isfinite(seen.arrays["head_grad"]).all():
            return
        grad_LA = np.asarray(seen.arrays["head_grad"], dtype=np.float64)
        typical_L1 = np.median(grad_LA, axis=1, keepdims=True)
        typical_L1 = np.where(typical_L1 > 0, typical_L1, np.median(grad_LA))
        frozen_LA = (grad_LA <= self._config.frozen * typical_L1) & (typical_L1 > 0)
        before_LA = np.array(self._frozen_for) if self._frozen_for else np.zeros(grad_LA.shape, dtype=np.int64)
        now_LA = np.where(frozen_LA, before_LA + 1, 0)
        self._frozen_for = now_LA.tolist()
        frozen_now = np.argwhere(now_LA == FROZEN_FOR).tolist()
        if frozen_now:
            layer, head = frozen_now[0]
            share = float(grad_LA[layer, head] / typical_L1[layer, 0])
            more = f", and those of {len(frozen_now) - 1} more heads as little" if len(frozen_now) > 1 else ""
            reason = f"queries of layer {layer}, head {head} get {share:.2g} of a median head's gradient{more}"
            where: dict[str, int | str] = {"layer": layer, "head": head}
            yield Alarm(self.name, seen.step, "warning", reason, share, self._config.frozen, where)

    def state(self) -> dict[str, Any]:
        return {"frozen_for": self._frozen_for}

    def load(self, state: dict[str, Any]) -> None:
        self._frozen_for = state["frozen_for"]


class Shard(Detector):
    """The weights of one tensor-parallel rank jumped while those of its peers did not.

    In plain words: the optimizer moves the shards of a matrix together; one that moves alone, up or down, was hit by a
    fault of memory, of a link or of the code. Without tensor parallelism only a jump that training cannot make is told.
    """

    name = "shard"

    def __init__(self) -> None:
        self._before: list[list[float]] = []

    def observe(self, seen: Observation) -> Iterator[Alarm]:
        if "shard_rms" not in seen.arrays:
            return
        log_MP = np.log(np.asarray(seen.arrays["shard_rms"], dtype=np.float64) + TINY)
        log_MP = np.where(np.isfinite(log_MP), log_MP, BROKEN)  # a flipped bit may make it nan or infinite
        before_MP = np.array(self._before)
        if before_MP.shape == log_MP.shape:  # else it is the first measurement, or that of another layout
            yield from self._jumps(log_MP, before_MP, seen)
        self._before = log_MP.tolist()

    def _jumps(self, log_MP: np.ndarray, before_MP: np.ndarray, seen: Observation) -> Iterator[Alarm]:
        # From 0, as some weights begin, or from what is broken already, any step is infinite.
        comparable_M1 = ((before_MP > np.log(2 * TINY)) & (before_MP < BROKEN)).all(axis=1, keepdims=True)
        jump_MP = np.where(comparable_M1, np.abs(log_MP - before_MP), 0.0)
        peers = log_MP.shape[1]
        alone_MP = jump_MP - np.min(jump_MP, axis=1, keepdims=True) if peers > 1 else jump_MP
        factor = SHARD_FACTOR if peers > 1 else SHARD_FACTOR_ALONE
        matrix, rank = map(int, np.unravel_index(np.argmax(alone_MP), alone_MP.shape))
        if alone_MP[matrix, rank] > np.log(factor):
            name = str(seen.arrays["matrix"][matrix])
            times = float(np.exp(min(alone_MP[matrix, rank], LARGEST)))
            way = "grew" if log_MP[matrix, rank] > before_MP[matrix, rank] else "shrank"
            beside = "beside those of its peers" if peers > 1 else "since the measurement before"
            reason = f"weights of {name} on tensor-parallel rank {rank} {way} by a factor of {times:.3g} {beside}"
            yield Alarm(self.name, seen.step, "fatal", reason, times, factor, {"matrix": name, "tp_rank": rank})

    def state(self) -> dict[str, Any]:
        return {"before": self._before}

    def load(self, state: dict[str, Any]) -> None:
        self._before = state["before"]
