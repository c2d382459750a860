"""QK-Clip: after an update, heads whose logits passed a threshold have the weights of their queries and keys shrunk.

Source: Kimi Team 2025 (Kimi K2, MuonClip). Logits are linear in both weights, so the factor threshold / S_max, S_max
the largest scaled logit of a head in the step's batch, is shared between them as its square root. Where query heads
share their keys, the whole of it goes to the queries. Under sigmaReparam the scale of W does not reach the logits, but
gamma does: one for all heads, so S_max is then that of all heads.

Shapes: L decoder layers of this rank, H query heads and G key heads of this rank, K head size.
"""

from bisect import bisect_right
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from itertools import accumulate
from typing import Literal

import torch
import torch.distributed as dist
from torch import Tensor, nn

from model.attention import Attention
from monitoring.logits import largest_logits
from monitoring.parts import AttentionProbe, count_heads, probed
from parallel.topology import Topology
from training.build import Trainer

BLOCKS: tuple[Literal["q", "k"], ...] = ("q", "k")


class QkClip:
    """Watches the logits of a step's forward passes, and clips after its update; does nothing with threshold 0.

    A step calls `watching` around its forward passes, `measure` after them, and `clip` after an update that was made.
    All stays on the device.
    """

    def __init__(self, threshold: float, trainer: Trainer, topology: Topology) -> None:
        """`threshold`: largest scaled logit that is left alone; 0: off."""
        self._threshold = threshold
        self._attention = [attention for _, attention in trainer.attention_layers()] if threshold else []
        self._engine, self._topology = trainer.engine, topology
        self._largest_LH = torch.empty(0)

    @contextmanager
    def watching(self) -> Iterator[None]:
        """See the forward passes inside the block, each once: recomputation is not counted."""
        if not self._attention:
            yield
            return
        heads = count_heads(self._attention[0], "q")
        self._largest_LH = torch.full((len(self._attention), heads), -torch.inf, device=self._topology.device)
        with ExitStack() as probes:
            for attention, largest_H in zip(self._attention, self._largest_LH, strict=True):
                probes.enter_context(probed(attention, _keep_largest(largest_H)))
            yield

    @torch.no_grad()
    def measure(self) -> dict[str, Tensor]:
        """Complete S_max over the ranks that saw other samples, and heads where gamma is shared by all of them.

        Returns this rank's term of the sum over all ranks of `qk_clipped`: the heads over the threshold (with
        sigmaReparam, all heads of such a layer). One all-reduce over data-parallel ranks and, with sigmaReparam, one
        over tensor-parallel ranks, whatever the number of layers; none of one rank.
        """
        if not self._threshold:
            return {}
        topology = self._topology
        if topology.dp_size > 1:
            dist.all_reduce(self._largest_LH, dist.ReduceOp.MAX, group=topology.dp_group)
        if self._attention[0].qkv.reparametrised:
            largest_L1 = self._largest_LH.amax(1, keepdim=True)
            if topology.tensor.size > 1:
                dist.all_reduce(largest_L1, dist.ReduceOp.MAX, group=topology.tensor.group)
            self._largest_LH = largest_L1.expand_as(self._largest_LH)
        over = (self._factors() < 1).sum().double()
        return {"qk_clipped": over if topology.dp_rank == 0 else torch.zeros_like(over)}

    @torch.no_grad()
    def clip(self) -> None:
        """Shrink what `measure` found, in the fp32 weights; to be called before `SpectralReparam.refresh`."""
        for attention, factor_H in zip(self._attention, self._factors() if self._attention else (), strict=True):
            if attention.qkv.reparametrised:
                changed = _scale_gamma(attention, factor_H[0])
            else:
                changed = _scale_rows(attention, factor_H)
            for parameter in changed:
                self._engine.load(parameter, {})

    def _factors(self) -> Tensor:
        """(L, H) threshold / S_max where that is less than 1, else 1. What is not finite is no measure of anything."""
        over_LH = self._largest_LH.isfinite() & (self._largest_LH > self._threshold)
        return torch.where(over_LH, self._threshold / self._largest_LH, 1.0)


def _keep_largest(largest_H: Tensor) -> AttentionProbe:
    def see(q_BHTK: Tensor, k_BGTK: Tensor, scale: float) -> None:
        largest_H.copy_(torch.maximum(largest_H, largest_logits(q_BHTK, k_BGTK, scale)))

    return see


def _scale_rows(attention: Attention, factor_H: Tensor) -> list[nn.Parameter]:
    """Scale the logits of each head by its factor, in the rows of its weights."""
    shared = count_heads(attention, "k") < len(factor_H)
    each_H = factor_H if shared else factor_H.sqrt()
    layers = []
    for block in BLOCKS[:1] if shared else BLOCKS:
        layer, rows = attention.projection(block)
        layer.weight[rows].unflatten(0, (-1, attention.head_size)).mul_(each_H[:, None, None])
        layers.append(layer)
    return _once(layer.weight for layer in layers)


def _scale_gamma(attention: Attention, factor: Tensor) -> list[nn.Parameter]:
    """Scale the logits of all heads by one factor, in gamma; one gamma of queries and keys has both roots of it."""
    matrices = {}
    for block in BLOCKS:
        layer, rows = attention.projection(block)
        index = bisect_right(list(accumulate(layer.rows.values())), rows.start)
        matrices[id(layer), index] = layer
    for (_, index), layer in matrices.items():
        assert layer.gamma is not None
        layer.gamma[index].mul_(factor.sqrt())
    return _once(layer.gamma for layer in matrices.values() if layer.gamma is not None)


def _once(parameters: Iterable[nn.Parameter]) -> list[nn.Parameter]:
    return list({id(parameter): parameter for parameter in parameters}.values())
