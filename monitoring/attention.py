"""Attention entropy and largest logit per layer and head, measured in the forward pass of a training step.

Shapes: B batch, H query heads of this rank, T sequence, L layers of the model, A all query heads.
"""

import math
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from monitoring.entropy import attention_statistics
from parallel.recompute import is_recomputing
from parallel.topology import Topology

T = TypeVar("T")


@dataclass
class _Sums:
    """Running sums of one layer over micro-batches."""

    entropy_H: Tensor | float = 0.0
    rows: int = 0
    max_logit_H: Tensor | float = -math.inf


class AttentionMonitor:
    """Probes the attention of this rank's layers while `measuring`; `collect` gathers all layers on the logging rank.

    Every token of the step counts once: all micro-batches, all data-parallel ranks, no recomputation.
    """

    def __init__(self, layers: Iterable[tuple[int, nn.Module]], topology: Topology) -> None:
        """`layers`: the global index of each decoder layer on this rank and its attention module."""
        self._attention = dict(layers)
        self._topology = topology
        self._sums: dict[int, _Sums] = {}

    @contextmanager
    def measuring(self, active: bool = True) -> Iterator[None]:
        """Measure the forward passes inside the block (nothing at all when not `active`)."""
        if not active:
            yield
            return
        self._sums = {index: _Sums() for index in self._attention}
        for index, attention in self._attention.items():
            attention.probe = self._probe(index)
        try:
            yield
        finally:
            for attention in self._attention.values():
                attention.probe = None  # type: ignore[assignment]

    def _probe(self, index: int):  # type: ignore[no-untyped-def]
        def measure(q_BHTK: Tensor, k_BGTK: Tensor, scale: float) -> None:
            if is_recomputing():
                return
            statistics = attention_statistics(q_BHTK.detach(), k_BGTK.detach(), scale)
            sums = self._sums[index]
            sums.entropy_H = sums.entropy_H + statistics.entropy_BHT.sum(dim=(0, 2))
            sums.rows += statistics.entropy_BHT.shape[0] * statistics.entropy_BHT.shape[2]
            largest_H = statistics.max_logit_BHT.amax(dim=(0, 2))
            sums.max_logit_H = torch.maximum(largest_H, torch.as_tensor(sums.max_logit_H).to(largest_H))

        return measure

    def collect(self) -> dict[str, Tensor] | None:
        """`entropy` and `max_logit`, each (L, A) on the CPU, on the logging rank; None elsewhere. Collective."""
        entropy_LH = torch.stack([torch.as_tensor(s.entropy_H) / s.rows for s in self._sums.values()])
        max_logit_LH = torch.stack([torch.as_tensor(s.max_logit_H) for s in self._sums.values()])
        if self._topology.dp_size > 1:
            dist.all_reduce(entropy_LH, group=self._topology.dp_group)
            dist.all_reduce(max_logit_LH, op=dist.ReduceOp.MAX, group=self._topology.dp_group)
            entropy_LH /= self._topology.dp_size
        mine = (self._topology.tensor.rank, list(self._sums), entropy_LH.cpu(), max_logit_LH.cpu())
        parts = gather_objects(mine, self._topology)
        if parts is None:
            return None
        return {"entropy": _assemble(parts, 2), "max_logit": _assemble(parts, 3)}


def gather_objects(mine: T, topology: Topology) -> list[T] | None:
    """One object from every tensor- and pipeline-parallel rank of the logging rank's replica, on the logging rank."""
    if topology.dp_rank != 0:
        return None
    parts: list[T | None] = [None] * topology.model_group.size()
    dist.all_gather_object(parts, mine, group=topology.model_group)
    return parts if topology.is_logging_rank else None  # type: ignore[return-value]


def _assemble(parts: list[tuple], which: int) -> Tensor:
    """Rows of each layer from its stage, heads in the order of tensor-parallel ranks: (L, A)."""
    rows: dict[int, list[tuple[int, Tensor]]] = {}
    for part in parts:
        tp_rank, indices = part[0], part[1]
        for index, heads in zip(indices, part[which], strict=True):
            rows.setdefault(index, []).append((tp_rank, heads))
    return torch.stack([torch.cat([heads for _, heads in sorted(rows[i], key=lambda r: r[0])]) for i in sorted(rows)])
