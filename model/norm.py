"""Normalisation layers, computed in fp32 and returned in the input's dtype.

Shapes: (..., D) -> (..., D).
"""

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from parallel.linear import replicate_parameter
from parallel.topology import TensorParallel


class LayerNorm(nn.Module):
    """Ba et al. 2016; a learned scale, and a bias where the model has biases."""

    def __init__(self, features: int, eps: float, tp: TensorParallel, *, bias: bool, partial: bool) -> None:
        super().__init__()
        self.eps = eps
        self.weight = replicate_parameter(nn.Parameter(torch.ones(features)), tp, partial=partial)
        self.bias = replicate_parameter(nn.Parameter(torch.zeros(features)), tp, partial=partial) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        return F.layer_norm(x.to(self.weight.dtype), self.weight.shape, self.weight, self.bias, self.eps).to(x.dtype)


class RMSNorm(nn.Module):
    """Zhang and Sennrich 2019; a learned scale."""

    def __init__(self, features: int, eps: float, tp: TensorParallel, *, partial: bool) -> None:
        super().__init__()
        self.eps = eps
        self.weight = replicate_parameter(nn.Parameter(torch.ones(features)), tp, partial=partial)

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x.to(self.weight.dtype), self.weight.shape, self.weight, self.eps).to(x.dtype)


def build_norm(
    kind: Literal["layernorm", "rmsnorm", "none"],
    features: int,
    eps: float,
    tp: TensorParallel,
    *,
    bias: bool = False,
    partial: bool = False,
) -> nn.Module:
    """`partial`: a rank sees only some of the tokens or heads, so the scale's gradient is summed over ranks."""
    if kind == "layernorm":
        return LayerNorm(features, eps, tp, bias=bias, partial=partial)
    if kind == "rmsnorm":
        return RMSNorm(features, eps, tp, partial=partial)
    return nn.Identity()
