"""Exact attention entropy, its lower bound and the largest logit per row, block by block.

Shapes: B batch, H query heads, G key/value heads, T sequence, K head size, N = B H; q and k blocks along T.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from parallel.kernels.choice import runs_triton

QUERY_BLOCK = {"cpu": 32, "cuda": 256}
KEY_BLOCK = 1024
SCORES = {"cpu": 1 << 18, "cuda": 1 << 26}
"""Scores held at a time: what stays in a core's cache; what keeps a GPU busy."""
FUTURE = -1e30
"""The centred score of a key after its query: its weight is exactly zero, and unlike -inf, zero times it is zero."""


@dataclass(frozen=True)
class AttentionStatistics:
    """Row-wise statistics of causal attention.

    `entropy_BHT` in nats, `bound_BHT` the least entropy of a row of this spread (`entropy_lower_bound`), and
    `max_logit_BHT` of what enters the softmax: scaled, and where the model caps them capped, scores.
    """

    entropy_BHT: Tensor
    bound_BHT: Tensor
    max_logit_BHT: Tensor


@torch.no_grad()
def attention_statistics(q_BHTK: Tensor, k_BGTK: Tensor, scale: float, cap: float | None = None) -> AttentionStatistics:
    """Ent(A_i) = -Σ_j A_ij log A_ij of every row of causal attention, its lower bound and its largest scaled logit.

    Scores are formed in fp32 (fp64 for fp64 input), less their row's mean, which neither attention nor the spread
    s = ‖logits - mean‖ knows; then less their running maximum m, so that with l = Σ e^(s-m) and w = Σ e^(s-m) (s-m)
    the entropy is log l - w / l, a sum of two terms of one sign. (The shorter H = LSE - q·Attn(V=k) cancels where it
    matters: at a collapsed head in bf16 a quarter of its values are negative.) Memory is one block of scores, never
    T x T. With a `cap`, all of it is of cap * tanh(s / cap), less that of the row's mean score.

    Source: Zhai et al. 2023, section 3; the block recurrence is flash attention's (Dao et al. 2022) with w carried
    (`top`, `total` and `weighted` below are m, l and w).
    """
    entropy_BHT, spread_BHT, top_BHT = _rows(q_BHTK, k_BGTK, scale, cap)
    keys_T = torch.arange(1, q_BHTK.shape[2] + 1, device=q_BHTK.device)
    return AttentionStatistics(entropy_BHT, entropy_lower_bound(spread_BHT, keys_T), top_BHT)


def _rows(q_BHTK: Tensor, k_BGTK: Tensor, scale: float, cap: float | None) -> tuple[Tensor, Tensor, Tensor]:
    """Entropy, spread and largest logit of every row; by a kernel on GPUs, which has no fp64."""
    if runs_triton(q_BHTK.device) and q_BHTK.dtype != torch.float64:
        from monitoring.kernels.entropy import attention_rows_of

        return attention_rows_of(q_BHTK, k_BGTK, scale, cap)
    return portable_rows(q_BHTK, k_BGTK, scale, cap)


def portable_rows(q_BHTK: Tensor, k_BGTK: Tensor, scale: float, cap: float | None) -> tuple[Tensor, Tensor, Tensor]:
    """Entropy, spread and largest logit of every row (B, H, T), with torch's operations."""
    dtype = torch.float64 if q_BHTK.dtype == torch.float64 else torch.float32
    groups = q_BHTK.shape[1] // k_BGTK.shape[1]
    q_NTK, k_NTK = (q_BHTK.to(dtype) * scale).flatten(0, 1), k_BGTK.to(dtype)
    k_NTK = (k_NTK.repeat_interleave(groups, dim=1) if groups > 1 else k_NTK).flatten(0, 1)
    keys_T = torch.arange(1, q_NTK.shape[1] + 1, device=q_NTK.device)
    mean_NT = (q_NTK * (k_NTK.cumsum(1) / keys_T[:, None])).sum(-1)
    # The mean rides in the product of queries and keys as one more feature.
    q_NTK = torch.cat([q_NTK, -mean_NT[..., None]], dim=-1)
    k_NTK = torch.cat([k_NTK, torch.ones_like(k_NTK[..., :1])], dim=-1)
    entropy_NT, spread_NT, top_NT = (torch.empty_like(mean_NT) for _ in range(3))
    rows, scores = QUERY_BLOCK[q_NTK.device.type], SCORES[q_NTK.device.type]
    heads = max(1, scores // (rows * min(q_NTK.shape[1], KEY_BLOCK)))
    for first_head in range(0, q_NTK.shape[0], heads):
        here = slice(first_head, first_head + heads)
        for first in range(0, q_NTK.shape[1], rows):
            block = slice(first, first + rows)
            parts = _block_rows(q_NTK[here, block], k_NTK[here], first, cap)
            entropy_NT[here, block], spread_NT[here, block], top_NT[here, block] = parts
    centre_NT = mean_NT if cap is None else cap * torch.tanh(mean_NT / cap)
    shape = q_BHTK.shape[:2]
    return entropy_NT.unflatten(0, shape), spread_NT.unflatten(0, shape), (top_NT + centre_NT).unflatten(0, shape)


def _block_rows(q_NqK: Tensor, k_NTK: Tensor, first_row: int, cap: float | None) -> tuple[Tensor, Tensor, Tensor]:
    """Entropy, spread and maximum of the centred scores of the rows first_row, first_row + 1, ..."""
    end = first_row + q_NqK.shape[1]
    rows_q = torch.arange(first_row, end, device=q_NqK.device)
    top = q_NqK.new_full(q_NqK.shape[:-1], FUTURE)
    total, weighted, squares, offset = (torch.zeros_like(top) for _ in range(4))
    for first_key in range(0, end, KEY_BLOCK):
        last_key = min(first_key + KEY_BLOCK, end)
        s_Nqk = torch.bmm(q_NqK, k_NTK[:, first_key:last_key].transpose(1, 2))
        if cap is not None:
            s_Nqk = _capped(s_Nqk, -q_NqK[..., -1:], cap)
        # True positions of rows and keys: a causal mask of the block's own indices would be another attention.
        first_future = min(max(first_key, first_row), last_key)
        diagonal = s_Nqk[..., first_future - first_key :]
        future = torch.arange(first_future, last_key, device=rows_q.device) > rows_q[:, None]
        diagonal.masked_fill_(future, 0)
        squares += torch.linalg.vector_norm(s_Nqk, dim=-1).square_()
        if cap is not None:
            offset += s_Nqk.sum(-1)
        diagonal.masked_fill_(future, FUTURE)
        new_top = torch.maximum(top, s_Nqk.amax(-1))
        shift = top - new_top
        s_Nqk -= new_top[..., None]
        e_Nqk = s_Nqk.exp()
        decay = shift.exp()
        sum_here = e_Nqk.sum(-1)
        weighted = decay * (weighted + total * shift) + e_Nqk.mul_(s_Nqk).sum(-1)
        total = decay * total + sum_here
        top = new_top
    if cap is not None:  # the capped scores' own mean is near the centre, not at it
        squares = (squares - offset.square() / (rows_q + 1)).clamp_(min=0)
    return total.log() - weighted / total, squares.sqrt_(), top


def _capped(centred_Nqk: Tensor, mean_Nq1: Tensor, cap: float) -> Tensor:
    """Scores less their row's mean -> capped scores less the capped mean."""
    return cap * (torch.tanh((centred_Nqk + mean_Nq1) / cap) - torch.tanh(mean_Nq1 / cap))


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
