# mypy: disallow-untyped-defs=False, disallow-incomplete-defs=False
"""Entropy, spread and largest logit of causal attention's rows, block by block, as one Triton kernel.

The recurrence is that of `monitoring.entropy`, which judges this one and says why scores are centred. A program has a
block of queries of one head and goes over the keys up to its last row: scores never leave the chip.

Shapes: B batch, H query heads, G key/value heads, T sequence, K head size; q and k blocks along T.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

QUERIES, KEYS = 64, 64
"""Rows and columns of a block of scores; a product of fewer than 16 is no product to a tensor core."""
OPERANDS = {torch.float32: tl.float32, torch.bfloat16: tl.bfloat16, torch.float16: tl.float16}
FUTURE = tl.constexpr(-1e30)
"""The centred score of a key after its query: its weight is exactly zero, and zero times it is zero."""


@triton.jit
def _tanh(x):
    """To fp32's absolute precision, which is what the difference of two of them has."""
    return 1 - 2 / (1 + tl.exp(2 * x))


@triton.jit
def _load_rows(start, rows, features, length, K: tl.constexpr):
    """A block of rows (q, K) of queries, keys or their means; zero outside."""
    inside = (rows < length)[:, None] & (features < K)[None, :]
    return tl.load(start + rows[:, None].to(tl.int64) * K + features[None, :], inside, 0.0)


@triton.jit
def attention_rows(
    q_BHTK,
    k_BGTK,
    means_BGTK,
    entropy_BHT,
    spread_BHT,
    top_BHT,
    scale,
    cap,
    heads,
    groups,
    length,
    CAPPED: tl.constexpr,
    K: tl.constexpr,
    FEATURES: tl.constexpr,
    QUERIES: tl.constexpr,
    KEYS: tl.constexpr,
    OPERAND: tl.constexpr,
):
    """One block of queries of one head. `means_BGTK`: of the keys up to each; tensors are contiguous.

    `heads` of queries share `groups` of keys; FEATURES is K or more, a power of two; OPERAND the dtype of what is
    multiplied to scores.
    """
    row = tl.program_id(0).to(tl.int64)  # b H + h
    block = tl.program_id(1)
    key_row = (row // heads) * groups + (row % heads) // (heads // groups)
    queries = block * QUERIES + tl.arange(0, QUERIES)
    features = tl.arange(0, FEATURES)
    q_qK = _load_rows(q_BHTK + row * length * K, queries, features, length, K)
    keys_of_head = k_BGTK + key_row * length * K
    means_qK = _load_rows(means_BGTK + key_row * length * K, queries, features, length, K)
    mean_q = tl.sum(q_qK.to(tl.float32) * means_qK, 1) * scale
    centre_q = mean_q
    if CAPPED:
        centre_q = cap * _tanh(mean_q / cap)
    top = tl.full((QUERIES,), FUTURE, tl.float32)
    total = tl.zeros((QUERIES,), tl.float32)
    weighted = tl.zeros((QUERIES,), tl.float32)
    squares = tl.zeros((QUERIES,), tl.float32)
    offset = tl.zeros((QUERIES,), tl.float32)
    for first in range(0, tl.minimum((block + 1) * QUERIES, length), KEYS):
        keys = first + tl.arange(0, KEYS)
        k_kK = _load_rows(keys_of_head, keys, features, length, K)
        # Products of bf16 numbers are exact in fp32: tensor cores lose nothing. Of fp32 ones they would lose bits.
        s_qk = tl.dot(q_qK.to(OPERAND), tl.trans(k_kK.to(OPERAND)), input_precision="ieee") * scale
        if CAPPED:
            s_qk = cap * _tanh(s_qk / cap)
        past = keys[None, :] <= queries[:, None]
        s_qk = tl.where(past, s_qk - centre_q[:, None], 0.0)
        squares += tl.sum(s_qk * s_qk, 1)
        offset += tl.sum(s_qk, 1)
        s_qk = tl.where(past, s_qk, FUTURE)
        new_top = tl.maximum(top, tl.max(s_qk, 1))
        shift = top - new_top
        s_qk -= new_top[:, None]
        e_qk = tl.exp(s_qk)
        decay = tl.exp(shift)
        weighted = decay * (weighted + total * shift) + tl.sum(e_qk * s_qk, 1)
        total = decay * total + tl.sum(e_qk, 1)
        top = new_top
    if CAPPED:  # the capped scores' own mean is near the centre, not at it
        squares = tl.maximum(squares - offset * offset / (queries + 1), 0.0)
    inside = queries < length
    here = row * length + queries
    tl.store(entropy_BHT + here, tl.log(total) - weighted / total, inside)
    tl.store(spread_BHT + here, tl.sqrt(squares), inside)
    tl.store(top_BHT + here, top + centre_q, inside)


@torch.no_grad()
def attention_rows_of(q_BHTK: Tensor, k_BGTK: Tensor, scale: float, cap: float | None) -> tuple[Tensor, Tensor, Tensor]:
    """Entropy, spread and largest scaled logit of every row, (B, H, T) in fp32 each."""
    batch, heads, length, size = q_BHTK.shape
    q_BHTK, k_BGTK = q_BHTK.contiguous(), k_BGTK.contiguous()
    counts_T1 = torch.arange(1, length + 1, device=q_BHTK.device)[:, None]
    means_BGTK = k_BGTK.float().cumsum(2) / counts_T1
    entropy, spread, top = (q_BHTK.new_empty(batch, heads, length, dtype=torch.float32) for _ in range(3))
    grid = (batch * heads, triton.cdiv(length, QUERIES))
    features = max(16, triton.next_power_of_2(size))
    attention_rows[grid](
        q_BHTK,
        k_BGTK,
        means_BGTK,
        entropy,
        spread,
        top,
        scale,
        1.0 if cap is None else cap,
        heads,
        k_BGTK.shape[1],
        length,
        cap is not None,
        size,
        features,
        QUERIES,
        KEYS if features <= 128 else KEYS // 2,
        OPERANDS[q_BHTK.dtype] if q_BHTK.is_cuda else tl.float32,  # Triton's interpreter takes bf16 for integers
    )
    return entropy, spread, top
