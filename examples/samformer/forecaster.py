"""The model: one block of attention over channels, then a linear forecast.

Shapes: B series, D channels, L steps seen, H steps forecast, K query width.
"""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from parallel.linear import ColumnParallelLinear, LinearSpec

QUERY_WIDTH = 16


class Forecast(NamedTuple):
    """`y_BDH`, and the attention of each channel to each, `attention_BDD`, whose rows add up to 1."""

    y_BDH: Tensor
    attention_BDD: Tensor


class ReversibleNorm(nn.Module):
    """Every channel of a series by its own mean and deviation over time, and back (RevIN, Kim et al. 2022).

    A learned scale and offset per channel.
    """

    def __init__(self, channels: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.eps = eps
        self.scale = nn.Parameter(torch.ones(channels, 1))
        self.offset = nn.Parameter(torch.zeros(channels, 1))

    def forward(self, x_BDL: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(normed, mean, deviation), the last two (B, D, 1)."""
        mean_BD1 = x_BDL.mean(-1, keepdim=True)
        deviation_BD1 = (x_BDL.var(-1, keepdim=True, correction=0) + self.eps).sqrt()
        return (x_BDL - mean_BD1) / deviation_BD1 * self.scale + self.offset, mean_BD1, deviation_BD1

    def back(self, y_BDH: Tensor, mean_BD1: Tensor, deviation_BD1: Tensor) -> Tensor:
        """Undo it, for values of other steps."""
        return (y_BDH - self.offset) / self.scale * deviation_BD1 + mean_BD1


class Samformer(nn.Module):
    """z = N(x); z + softmax(q kᵀ / sqrt(K)) v over channels; a linear map of time; N⁻¹.

    The linears are the project's, on one process: `spec` says whether they are reparametrised. They start with
    the deviation of torch's own, 1 / sqrt(3 in). Source: Ilbert et al. 2024, section 4 and figure 6.
    """

    def __init__(self, channels: int, length: int, horizon: int, spec: LinearSpec, *, norm: bool) -> None:
        super().__init__()
        std = (3 * length) ** -0.5
        self.norm = ReversibleNorm(channels) if norm else None
        self.qkv = ColumnParallelLinear("qkv", length, {"q": QUERY_WIDTH, "k": QUERY_WIDTH, "v": length}, spec, std=std)
        self.forecast = ColumnParallelLinear("forecast", length, {"forecast": horizon}, spec, std=std)

    def forward(self, x_BDL: Tensor) -> Forecast:
        if self.norm is None:
            return self._forecast(x_BDL)
        z_BDL, *statistics = self.norm(x_BDL)
        y_BDH, attention_BDD = self._forecast(z_BDL)
        return Forecast(self.norm.back(y_BDH, *statistics), attention_BDD)

    def _forecast(self, z_BDL: Tensor) -> Forecast:
        q_BDK, k_BDK, v_BDL = self.qkv(z_BDL).split(list(self.qkv.blocks.values()), dim=-1)
        attention_BDD = (q_BDK @ k_BDK.transpose(1, 2) / QUERY_WIDTH**0.5).softmax(-1)
        return Forecast(self.forecast(z_BDL + attention_BDD @ v_BDL), attention_BDD)
