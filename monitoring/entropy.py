"""Exact attention entropy and largest logit per head, block by block.

Shapes: B batch, H query heads, G key/value heads, T sequence, K head size; q and k blocks along T.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

QUERY_BLOCK = 256
KEY_BLOCK = 1024


@dataclass(frozen=True)
class AttentionStatistics:
    """Row-wise statistics of causal attention: `entropy_BHT` in nats, `max_logit_BHT` of scaled scores."""

    entropy_BHT: Tensor
    max_logit_BHT: Tensor


@torch.no_grad()
def attention_statistics(q_BHTK: Tensor, k_BGTK: Tensor, scale: float) -> AttentionStatistics:
    """Ent(A_i) = -Σ_j A_ij log A_ij of every row of causal attention, and its largest scaled logit.

    Scores are formed in fp32 (fp64 for fp64 input) and centred on the running maximum m of their row, so that with
    l = Σ e^(s-m) and w = Σ e^(s-m) (s-m) the entropy is log l - w / l, a sum of two terms of one sign. (The shorter
    H = LSE - q·Attn(V=k) cancels where it matters: at a collapsed head in bf16 a quarter of its values are negative.)
    Memory is one block of scores, never T x T.

    Source: Zhai et al. 2023, section 3; the block recurrence is flash attention's (Dao et al. 2022) with w carried
    (`top`, `total` and `weighted` below are m, l and w).
    """
    dtype = torch.float64 if q_BHTK.dtype == torch.float64 else torch.float32
    groups = q_BHTK.shape[1] // k_BGTK.shape[1]
    k_BHTK = k_BGTK.to(dtype).repeat_interleave(groups, dim=1) if groups > 1 else k_BGTK.to(dtype)
    length = q_BHTK.shape[2]
    blocks = [
        _block_rows(q_BHTK[:, :, first : first + QUERY_BLOCK].to(dtype) * scale, k_BHTK, first)
        for first in range(0, length, QUERY_BLOCK)
    ]
    return AttentionStatistics(*(torch.cat(parts, dim=-1) for parts in zip(*blocks, strict=True)))


def _block_rows(q_BHqK: Tensor, k_BHTK: Tensor, first_row: int) -> tuple[Tensor, Tensor]:
    """Entropy and maximum of the rows first_row, first_row + 1, ... of scaled queries."""
    rows_q = torch.arange(first_row, first_row + q_BHqK.shape[2], device=q_BHqK.device)
    shape = q_BHqK.shape[:-1]
    top = q_BHqK.new_full(shape, -math.inf)
    total, weighted = q_BHqK.new_zeros(shape), q_BHqK.new_zeros(shape)
    end = first_row + q_BHqK.shape[2]
    for first_key in range(0, end, KEY_BLOCK):
        keys = slice(first_key, min(first_key + KEY_BLOCK, end))
        s_BHqk = q_BHqK @ k_BHTK[:, :, keys].transpose(-1, -2)
        # True positions of rows and keys: a causal mask of the block's own indices would be another attention.
        future_qk = torch.arange(keys.start, keys.stop, device=s_BHqk.device) > rows_q[:, None]
        s_BHqk = s_BHqk.masked_fill(future_qk, -math.inf)
        new_top = torch.maximum(top, s_BHqk.amax(-1))
        shift = torch.where(top == -math.inf, torch.zeros_like(top), top - new_top)
        centred_BHqk = s_BHqk - new_top[..., None]
        e_BHqk = centred_BHqk.exp()
        decay = torch.where(top == -math.inf, torch.zeros_like(top), shift.exp())
        weighted = decay * (weighted + total * shift) + (e_BHqk * centred_BHqk.masked_fill(future_qk, 0)).sum(-1)
        total = decay * total + e_BHqk.sum(-1)
        top = new_top
    return total.log() - weighted / total, top


def causal_maximum(length: int) -> float:
    """Mean entropy of a uniform causal head, log(T!) / T, in nats: the most a head of this length can have."""
    return math.lgamma(length + 1) / length


def entropy_lower_bound(spread: Tensor, keys: Tensor) -> Tensor:
    """The least entropy of a row of n logits whose distance from their mean has norm s.

    With beta = exp(-s √(n/(n-1))): log(1 + (n-1) beta) + s √(n(n-1)) beta / (1 + (n-1) beta).
    Shapes: `spread` (...) in nats, `keys` (...) integer n >= 1; 0 where n = 1.
    Source: Zhai et al. 2023, Theorem 3.1, applied per row.
    """
    n = keys.to(spread.dtype).clamp(min=2)
    beta = torch.exp(-spread * torch.sqrt(n / (n - 1)))
    mass = (n - 1) * beta
    bound = torch.log1p(mass) + spread * torch.sqrt(n * (n - 1)) * beta / (1 + mass)
    return torch.where(keys > 1, bound, torch.zeros_like(bound))
