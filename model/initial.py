"""The standard deviation that a linear of a decoder layer starts with."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from configs.schema import ModelConfig


def initial_std(config: ModelConfig, block: str, in_features: int, out_features: int) -> float:
    """Standard deviation of the initial weights of `block`: q, k, v, output, gate, up or down.

    `init = xavier`: sqrt(2 / (in + out)), every projection by itself though several are packed in one weight (Glorot
    and Bengio 2010, eq. 12). `depth_scaled_init`: output projections are divided by sqrt(2 x layers) (GPT-2).
    DeepNorm: all but queries and keys are divided by (8 x layers)^(1/4) (Wang et al. 2022, figure 2, decoder-only).
    """
    std = (2 / (in_features + out_features)) ** 0.5 if config.init == "xavier" else config.init_std
    if config.depth_scaled_init and block in ("output", "down"):
        std /= (2 * config.layers) ** 0.5
    if config.residual.kind == "deepnorm" and block not in ("q", "k"):
        std /= (8 * config.layers) ** 0.25
    return std
