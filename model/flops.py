"""Floating-point operations of training, by the convention that published utilisations use.

A matrix product of a (n, m) weight with one token takes 2 n m operations forward and twice that backward. Attention is
counted in full, 12 x heads x head size x T per token and layer, although causal attention needs half, as PaLM,
Megatron-LM and torchtitan do: figures stay comparable. Recomputation is not counted (model, not hardware, utilisation).

Source: Chowdhery et al. 2022, appendix B.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from configs.schema import ModelConfig


@dataclass(frozen=True)
class Flops:
    """Operations per token of forward and backward passes together."""

    matrices: int
    """All linears of the blocks and the head, tied or not; the embedding is a lookup."""
    attention: int
    """Scores and their product with the values."""

    @property
    def total(self) -> int:
        return self.matrices + self.attention


def layer_parameters(config: ModelConfig) -> int:
    """Numbers in the matrices of one decoder layer: projections, output, feed-forward."""
    width, inner = config.hidden_size, config.inner_size
    sizes = {"q": config.heads, "k": config.key_value_heads, "v": config.key_value_heads}
    attention = config.heads * config.head_size * width
    for block, heads in sizes.items():
        out = heads * config.head_size
        if block not in config.low_rank.targets:
            attention += out * width
        elif config.low_rank.per_head:
            attention += heads * config.low_rank_size * (width + config.head_size)
        else:
            attention += config.low_rank_size * (width + out)
    return attention + (3 if config.activation == "swiglu" else 2) * width * inner


def training_flops(config: ModelConfig, rows: int, length: int) -> Flops:
    """Per token of a training step; `rows`: of the padded vocabulary; `length`: tokens per sequence."""
    matrices = config.layers * layer_parameters(config) + rows * config.hidden_size
    return Flops(6 * matrices, 12 * config.layers * config.heads * config.head_size * length)
