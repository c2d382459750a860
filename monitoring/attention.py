"""Attention entropy, its lower bound and the largest logit of each head, seen in the forward passes of a training step.

Shapes: B batch, H query heads of this rank, T sequence.
"""

from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from monitoring.entropy import attention_statistics
from monitoring.gather import Labels
from monitoring.parts import AttentionPart, AttentionProbe, count_heads, probed
from parallel.clock import timed
from parallel.topology import Topology


@dataclass
class _Sums:
    """Running sums and maximum of one layer over micro-batches."""

    entropy_H: Tensor
    bound_H: Tensor
    max_logit_H: Tensor


class HeadMonitor:
    """Probes the attention of this rank's layers; every token of the step counts once, no recomputation does."""

    def __init__(self, layers: Iterable[tuple[int, AttentionPart]], topology: Topology) -> None:
        """`layers`: the index in the model of each decoder layer on this rank, and its attention module."""
        self._attention = dict(layers)
        self._device, self._clock = topology.device, topology.clock
        self._sums: dict[int, _Sums] = {}
        heads = {layer: count_heads(attention, "q") for layer, attention in self._attention.items()}
        first = topology.tensor.rank
        labels = [(layer, first * count + head) for layer, count in heads.items() for head in range(count)]
        self._heads = heads
        self.sums: Labels = {"entropy": labels, "entropy_bound": labels}
        self.maxima: Labels = {"max_logit": labels}

    @contextmanager
    def probing(self) -> Iterator[None]:
        """See the forward passes inside the block."""
        self._sums = {layer: self._start(heads) for layer, heads in self._heads.items()}
        with ExitStack() as probes:
            for layer, attention in self._attention.items():
                probe = timed(self._clock, "monitoring", self._probe(self._sums[layer], attention.softcap))
                probes.enter_context(probed(attention, probe))
            yield

    def _start(self, heads: int) -> _Sums:
        zeros_H = torch.zeros(heads, dtype=torch.float64, device=self._device)
        return _Sums(zeros_H, zeros_H.clone(), torch.full_like(zeros_H, -torch.inf))

    def _probe(self, sums: _Sums, cap: float | None) -> AttentionProbe:
        def see(q_BHTK: Tensor, k_BGTK: Tensor, scale: float) -> None:
            statistics = attention_statistics(q_BHTK.detach(), k_BGTK.detach(), scale, cap)
            sums.entropy_H += statistics.entropy_BHT.sum(dim=(0, 2), dtype=torch.float64)
            sums.bound_H += statistics.bound_BHT.sum(dim=(0, 2), dtype=torch.float64)
            sums.max_logit_H = torch.maximum(sums.max_logit_H, statistics.max_logit_BHT.amax(dim=(0, 2)).double())

        return see

    def collect(self) -> dict[str, Tensor]:
        """`entropy` and `entropy_bound`, sums over rows in nats, and `max_logit`, by label."""
        sums = self._sums.values()
        return {
            "entropy": torch.cat([s.entropy_H for s in sums]),
            "entropy_bound": torch.cat([s.bound_H for s in sums]),
            "max_logit": torch.cat([s.max_logit_H for s in sums]),
        }
