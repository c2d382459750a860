"""How a sublayer's output joins the residual stream.

Shapes: B batch, t this rank's share of the sequence, D hidden.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from parallel.linear import replicate_parameter
from parallel.topology import TensorParallel

if TYPE_CHECKING:
    from configs.schema import ModelConfig


class LearnedResidual(nn.Module):
    """x + scale * y, added in fp32: (B, t, D), (B, t, D) -> (B, t, D).

    `scale` is (D,), one number per feature (LayerScale, Touvron et al. 2021, eq. 4), or (1,), one for the whole branch
    (ReZero, Bachlechner et al. 2021, eq. 1). DeepSpeed cannot shard a parameter without dimensions.
    """

    def __init__(self, features: int, start: float, tp: TensorParallel) -> None:
        super().__init__()
        scale_D = nn.Parameter(torch.full((features,), start))
        # Under sequence parallelism a rank sees its tokens only.
        self.scale = replicate_parameter(scale_D, tp, partial=tp.sequence_parallel)

    def forward(self, x_BtD: Tensor, y_BtD: Tensor) -> Tensor:
        return (x_BtD + self.scale * y_BtD).to(x_BtD.dtype)


class FixedResidual(nn.Module):
    """stream * x + branch * y: (B, t, D), (B, t, D) -> (B, t, D)."""

    def __init__(self, *, stream: float = 1.0, branch: float = 1.0) -> None:
        super().__init__()
        self.stream, self.branch = stream, branch

    def forward(self, x_BtD: Tensor, y_BtD: Tensor) -> Tensor:
        if self.stream != 1:
            x_BtD = self.stream * x_BtD
        return torch.add(x_BtD, y_BtD, alpha=self.branch)


def build_residual(config: ModelConfig, tp: TensorParallel) -> nn.Module:
    """The sum of a sublayer's input and output that `model.residual` asks for.

    Sources: `depth` Noci et al. 2022, section 3.2; `deepnorm` Wang et al. 2022, figure 2 (decoder-only).
    """
    residual = config.residual
    if residual.kind == "layerscale":
        return LearnedResidual(config.hidden_size, _layerscale_start(config), tp)
    if residual.kind == "rezero":
        return LearnedResidual(1, 0.0, tp)
    if residual.kind == "depth":
        return FixedResidual(branch=config.layers**-0.5)
    if residual.kind == "deepnorm":
        return FixedResidual(stream=(2 * config.layers) ** 0.25)
    return FixedResidual()


def _layerscale_start(config: ModelConfig) -> float:
    """The deeper the model, the nearer to the identity it starts (Touvron et al. 2021, section 2)."""
    if config.residual.layerscale_init is not None:
        return config.residual.layerscale_init
    if config.layers <= 18:
        return 0.1
    return 1e-5 if config.layers <= 24 else 1e-6
