"""Projections of attention as products of two factors, W = B A (multi-head low-rank attention).

`attention.qkv` holds A in the place of such a projection; this is B, next to the heads. Either all heads share one
inner width, whose features tensor-parallel ranks make apart and B needs whole, or every head has its own, and with it
everything a rank needs for its heads.

Shapes: B batch, T sequence (whole on every rank), P low-rank projections, R inner width (of a head where each has its
own) and r this rank's share of it, h heads of this rank, K head size.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional as F

from parallel.linear import ColumnParallelLinear, LinearSpec
from parallel.regions import gather_features

if TYPE_CHECKING:
    from configs.schema import ModelConfig


class LowRankHeads(ColumnParallelLinear):
    """The factors B of the projections in `model.low_rank.targets`: q = B (A x).

    Its blocks are named after the projections and shared by heads, as those of a full projection would be. Source:
    Chung et al. 2024 (multi-head low-rank attention).
    """

    def __init__(
        self, name: str, config: ModelConfig, heads: Mapping[str, int], spec: LinearSpec, stds: Mapping[str, float]
    ) -> None:
        """By projection, `heads`: how many the whole model has; `stds`: of an initial element of the product B A."""
        self.width, self.head_size, self.per_head = config.low_rank_size, config.head_size, config.low_rank.per_head
        targets: dict[str, int] = {
            block: count * self.head_size for block, count in heads.items() if block in config.low_rank.targets
        }
        std: dict[str, float] = {block: factor_std(config, stds[block]) for block in targets}
        super().__init__(name, self.width, targets, spec, std=std)

    def forward(self, parts: Mapping[str, Tensor]) -> dict[str, Tensor]:  # type: ignore[override]
        """A x of each low-rank projection -> the projection (B, T, h K).

        A x is (B, T, r), or (B, T, h R) where each head has its own factors.
        """
        weights = self.effective_weight().split(list(self.blocks.values()))
        inner = [parts[block] for block in self.blocks]
        if self.per_head:
            outputs = [self._head_by_head(z, weight) for z, weight in zip(inner, weights, strict=True)]
        else:
            # One move for all projections; backward sums what each rank's heads say of every feature.
            z_BTPR = gather_features(torch.stack(inner, dim=-2), self.tp)
            outputs = [F.linear(z, weight) for z, weight in zip(z_BTPR.unbind(-2), weights, strict=True)]
        return dict(zip(self.blocks, outputs, strict=True))

    def _head_by_head(self, z: Tensor, weight: Tensor) -> Tensor:
        z_BThR, weight_hKR = z.unflatten(-1, (-1, self.width)), weight.unflatten(0, (-1, self.head_size))
        return torch.einsum("bthr,hkr->bthk", z_BThR, weight_hKR).flatten(2)


def inner_features(config: ModelConfig, heads: int) -> int:
    """Out-features of the factor A of a projection with so many heads."""
    return heads * config.low_rank_size if config.low_rank.per_head else config.low_rank_size


def factor_std(config: ModelConfig, std: float) -> float:
    """Initial standard deviation of both factors, so that an element of B A, a sum of R products, has `std`."""
    return (std / config.low_rank_size**0.5) ** 0.5
