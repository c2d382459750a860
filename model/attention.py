"""Causal self-attention with grouped queries.

Shapes: B batch, T sequence, t this rank's share of it (T without sequence parallelism), D hidden, H query heads and
G key/value heads of this rank, K head size; S the tokens that a cache holds, these included.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Literal

from torch import Tensor, nn
from torch.nn import functional as F

from model.cache import LayerCache
from model.initial import initial_std
from model.low_rank import LowRankHeads, factor_std, inner_features
from model.norm import build_norm
from model.rotary import RotaryEmbedding
from model.softcap import capped_attention
from parallel.linear import ColumnParallelLinear, LinearSpec, RowParallelLinear

if TYPE_CHECKING:
    from configs.schema import ModelConfig

AttentionProbe = Callable[[Tensor, Tensor, float], None]
"""Sees (q_BHTK, k_BGTK, scale) of a forward pass, after norms and rotary embedding."""

Projection = Literal["q", "k", "v"]
PROJECTIONS: tuple[Projection, ...] = ("q", "k", "v")
MATRICES = {"separate": (("q",), ("k",), ("v",)), "qk+v": (("q", "k"), ("v",)), "qkv": (("q", "k", "v"),)}


class Attention(nn.Module):
    """softmax(q kᵀ / sqrt(K)) v, its logits capped or not, then the output projection: (B, t, D) -> (B, t, D).

    Sources: Vaswani et al. 2017; Ainslie et al. 2023 (grouped queries); Henry et al. 2020 (query-key norm).
    """

    def __init__(self, name: str, config: ModelConfig, length: int, spec: LinearSpec) -> None:
        super().__init__()
        self.head_size = config.head_size
        self.scale = self.head_size**-0.5
        self.softcap = config.attention_softcap
        self.probes: list[AttentionProbe] = []
        heads: dict[str, int] = {"q": config.heads, "k": config.key_value_heads, "v": config.key_value_heads}
        sizes = {block: count * self.head_size for block, count in heads.items()}
        width = config.hidden_size
        stds: dict[str, float] = {block: initial_std(config, block, width, sizes[block]) for block in PROJECTIONS}
        self.low_rank: LowRankHeads | None = None
        if config.low_rank.targets:
            self.low_rank = LowRankHeads(f"{name}.low_rank", config, heads, spec, stds)
            for block in self.low_rank.blocks:
                sizes[block] = inner_features(config, heads[block])
                stds[block] = factor_std(config, stds[block])
        self.qkv = ColumnParallelLinear(
            f"{name}.qkv", config.hidden_size, sizes, spec, std=stds, matrices=MATRICES[config.reparam.qkv]
        )
        inner = config.heads * self.head_size
        std = initial_std(config, "output", inner, width)
        self.output = RowParallelLinear(f"{name}.output", inner, width, spec, std=std)
        self.q_norm: nn.Module = nn.Identity()
        self.k_norm: nn.Module = nn.Identity()
        if config.qk_norm:
            kind = "rmsnorm" if config.norm == "none" else config.norm
            self.q_norm = build_norm(kind, self.head_size, config.norm_eps, spec.tp, partial=True)
            self.k_norm = build_norm(kind, self.head_size, config.norm_eps, spec.tp, partial=True)
        rotary = config.positions == "rope"
        self.rotary = RotaryEmbedding(self.head_size, length, config.rope_theta) if rotary else None

    def projection(self, block: Projection) -> tuple[ColumnParallelLinear, slice]:
        """The layer whose rows are the heads of a projection, and this rank's rows of it: K for each head, in order.

        Of a low-rank projection that is the factor next to the heads.
        """
        layer = self.low_rank if self.low_rank is not None and block in self.low_rank.blocks else self.qkv
        names = list(layer.blocks)
        first = sum(layer.blocks[name] for name in names[: names.index(block)])
        return layer, slice(first, first + layer.blocks[block])

    def forward(self, x_BtD: Tensor, cache: LayerCache | None = None) -> Tensor:
        """With a cache the tokens of x follow those in it, attend to them too, and join them."""
        qkv = self.qkv(x_BtD).split(list(self.qkv.blocks.values()), dim=-1)
        if self.low_rank is not None:
            parts = dict(zip(self.qkv.blocks, qkv, strict=True))
            qkv = (parts | self.low_rank(parts)).values()
        q_BHTK, k_BGTK, v_BGTK = (part.unflatten(-1, (-1, self.head_size)).transpose(1, 2) for part in qkv)
        q_BHTK, k_BGTK = self.q_norm(q_BHTK), self.k_norm(k_BGTK)
        if self.rotary is not None:
            first = 0 if cache is None else cache.length
            q_BHTK, k_BGTK = self.rotary(q_BHTK, first), self.rotary(k_BGTK, first)
        for probe in self.probes:
            probe(q_BHTK, k_BGTK, self.scale)
        if cache is not None:
            k_BGTK, v_BGTK = cache.append(k_BGTK, v_BGTK)
        return self.output(self._attend(q_BHTK, k_BGTK, v_BGTK).transpose(1, 2).flatten(2))

    def _attend(self, q_BHTK: Tensor, k_BGSK: Tensor, v_BGSK: Tensor) -> Tensor:
        """Of the last T of S tokens to all before them: S = T without a cache; T = 1, or S = T, with one."""
        if self.softcap is not None:
            return capped_attention(q_BHTK, k_BGSK, v_BGSK, self.scale, self.softcap)
        return F.scaled_dot_product_attention(
            q_BHTK,
            k_BGSK,
            v_BGSK,
            is_causal=q_BHTK.shape[2] == k_BGSK.shape[2],  # a single token may see every one
            scale=self.scale,
            enable_gqa=q_BHTK.shape[1] != k_BGSK.shape[1],
        )
