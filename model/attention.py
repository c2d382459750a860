"""Causal self-attention with grouped queries.

Shapes: B batch, T sequence, t this rank's share of it (T without sequence parallelism), D hidden, H query heads and
G key/value heads of this rank, K head size.
"""

from collections.abc import Callable

from torch import Tensor, nn
from torch.nn import functional as F

from configs.schema import ModelConfig
from model.norm import build_norm
from model.rotary import RotaryEmbedding
from parallel.linear import ColumnParallelLinear, LinearSpec, RowParallelLinear

AttentionProbe = Callable[[Tensor, Tensor, float], None]
"""Sees (q_BHTK, k_BGTK, scale) of a forward pass, after norms and rotary embedding."""

MATRICES = {"separate": (("q",), ("k",), ("v",)), "qk+v": (("q", "k"), ("v",)), "qkv": (("q", "k", "v"),)}


class Attention(nn.Module):
    """softmax(q kᵀ / sqrt(K)) v, then the output projection: (B, t, D) -> (B, t, D).

    Sources: Vaswani et al. 2017; Ainslie et al. 2023 (grouped queries); Henry et al. 2020 (query-key norm).
    """

    def __init__(self, name: str, config: ModelConfig, length: int, spec: LinearSpec, *, output_std: float) -> None:
        super().__init__()
        self.head_size = config.head_size
        self.scale = self.head_size**-0.5
        self.probe: AttentionProbe | None = None
        sizes = {"q": config.heads, "k": config.key_value_heads, "v": config.key_value_heads}
        self.qkv = ColumnParallelLinear(
            f"{name}.qkv",
            config.hidden_size,
            {block: heads * self.head_size for block, heads in sizes.items()},
            spec,
            std=config.init_std,
            matrices=MATRICES[config.reparam.qkv],
        )
        self.output = RowParallelLinear(
            f"{name}.output", config.heads * self.head_size, config.hidden_size, spec, std=output_std
        )
        self.q_norm: nn.Module = nn.Identity()
        self.k_norm: nn.Module = nn.Identity()
        if config.qk_norm:
            kind = "rmsnorm" if config.norm == "none" else config.norm
            self.q_norm = build_norm(kind, self.head_size, config.norm_eps, spec.tp, partial=True)
            self.k_norm = build_norm(kind, self.head_size, config.norm_eps, spec.tp, partial=True)
        rotary = config.positions == "rope"
        self.rotary = RotaryEmbedding(self.head_size, length, config.rope_theta) if rotary else nn.Identity()

    def forward(self, x_BtD: Tensor) -> Tensor:
        qkv = self.qkv(x_BtD).split(list(self.qkv.blocks.values()), dim=-1)
        q_BHTK, k_BGTK, v_BGTK = (part.unflatten(-1, (-1, self.head_size)).transpose(1, 2) for part in qkv)
        q_BHTK = self.rotary(self.q_norm(q_BHTK))
        k_BGTK = self.rotary(self.k_norm(k_BGTK))
        if self.probe is not None:
            self.probe(q_BHTK, k_BGTK, self.scale)
        y_BHTK = F.scaled_dot_product_attention(
            q_BHTK, k_BGTK, v_BGTK, is_causal=True, scale=self.scale, enable_gqa=q_BHTK.shape[1] != k_BGTK.shape[1]
        )
        return self.output(y_BHTK.transpose(1, 2).flatten(2))
