"""Logits held within a cap by tanh, and attention over capped scores.

Shapes: B batch, H query heads and G key/value heads of this rank, T queries, S keys, K head size; q and k: a block of
queries and the keys up to its last.
"""

import torch
from torch import Tensor

QUERY_BLOCK = 256
"""Queries whose scores are formed at a time: over keys up to the last of them, half of T x T is never formed."""


def softcap(x: Tensor, cap: float) -> Tensor:
    """The elementwise cap * tanh(x / cap), computed in fp32 (fp64 for fp64 input), in the input's dtype.

    Source: Gemma 2 (Gemma team 2024, section 2).
    """
    wide = x if x.dtype.itemsize >= 4 else x.float()
    return (cap * torch.tanh(wide / cap)).to(x.dtype)


def capped_attention(q_BHTK: Tensor, k_BGSK: Tensor, v_BGSK: Tensor, scale: float, cap: float) -> Tensor:
    """softmax(cap * tanh(scale q kᵀ / cap)) v, causal: (B, H, T, K); the queries are those of the last T of S tokens.

    torch's fused attention has no place for the cap, so scores are formed, capped and normalised in fp32, and kept for
    the backward pass: 8 bytes (and 2 more in bf16) for each of the B H T (T + QUERY_BLOCK) / 2 scores of a layer, in
    place of fused attention's none. At B = 1, H = 16, T = 2,048 in bf16 that is 360 MiB a layer; with
    `training.recompute = full` or `selective` one layer at a time has it.
    """
    heads_per_group = q_BHTK.shape[1] // k_BGSK.shape[1]
    k_BHSK, v_BHSK = (x.repeat_interleave(heads_per_group, dim=1) for x in (k_BGSK, v_BGSK))
    before = k_BHSK.shape[2] - q_BHTK.shape[2]
    blocks = []
    for first in range(0, q_BHTK.shape[2], QUERY_BLOCK):
        q_BHqK = q_BHTK[:, :, first : first + QUERY_BLOCK]
        last = before + first + q_BHqK.shape[2]
        s_BHqk = q_BHqK @ k_BHSK[:, :, :last].transpose(-1, -2) * scale
        s_BHqk = softcap(s_BHqk if s_BHqk.dtype.itemsize >= 4 else s_BHqk.float(), cap)
        s_BHqk = s_BHqk.masked_fill(_future(before + first, last, s_BHqk.device), float("-inf"))
        blocks.append(s_BHqk.softmax(-1).to(v_BHSK.dtype) @ v_BHSK[:, :, :last])
    return torch.cat(blocks, dim=2)


def _future(first: int, last: int, device: torch.device) -> Tensor:
    """Keys 0 ... last - 1 that come after each of the queries first ... last - 1."""
    positions_k = torch.arange(last, device=device)
    return positions_k > positions_k[first:, None]
