"""The feed-forward layer: GELU (two projections) or SwiGLU (three).

Shapes: B batch, T sequence, t this rank's share of it, D hidden, F this rank's share of the inner width.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor, nn
from torch.nn import functional as F

from model.initial import initial_std
from parallel.linear import ColumnParallelLinear, LinearSpec, RowParallelLinear

if TYPE_CHECKING:
    from configs.schema import ModelConfig

MATRICES = {"separate": (("gate",), ("up",)), "fused": (("gate", "up"),)}


class GeluFeedForward(nn.Module):
    """GELU(x W_upᵀ) W_downᵀ: (B, t, D) -> (B, t, D)."""

    def __init__(self, name: str, config: ModelConfig, spec: LinearSpec) -> None:
        super().__init__()
        inner, hidden = config.inner_size, config.hidden_size
        up_std, down_std = initial_std(config, "up", hidden, inner), initial_std(config, "down", inner, hidden)
        self.up = ColumnParallelLinear(f"{name}.up", hidden, {"up": inner}, spec, std=up_std)
        self.down = RowParallelLinear(f"{name}.down", inner, hidden, spec, std=down_std)

    def forward(self, x_BtD: Tensor) -> Tensor:
        return self.down(F.gelu(self.up(x_BtD)))


class SwigluFeedForward(nn.Module):
    """(silu(x W_gateᵀ) * x W_upᵀ) W_downᵀ: (B, t, D) -> (B, t, D). Source: Shazeer 2020."""

    def __init__(self, name: str, config: ModelConfig, spec: LinearSpec) -> None:
        super().__init__()
        inner, hidden = config.inner_size, config.hidden_size
        up_std, down_std = initial_std(config, "up", hidden, inner), initial_std(config, "down", inner, hidden)
        self.gate_up = ColumnParallelLinear(
            f"{name}.gate_up",
            hidden,
            {"gate": inner, "up": inner},
            spec,
            std=up_std,
            matrices=MATRICES[config.reparam.gate_up],
        )
        self.down = RowParallelLinear(f"{name}.down", inner, hidden, spec, std=down_std)

    def forward(self, x_BtD: Tensor) -> Tensor:
        gate_BTF, up_BTF = self.gate_up(x_BtD).chunk(2, dim=-1)
        return self.down(F.silu(gate_BTF) * up_BTF)
