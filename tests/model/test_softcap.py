"""Capped attention against the whole matrix in float64; what no cap leaves as it was.

Shapes: B batch, H query heads, G key/value heads, T sequence, K head size.
"""

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from model import softcap as module
from model.softcap import capped_attention, softcap

T, K = 20, 8


def inputs(groups: int, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(2, heads, T, K, generator=generator).to(dtype) * 3 for heads in (4, groups, groups))
    return q.requires_grad_(), k.requires_grad_(), v.requires_grad_()


def whole_matrix(q_BHTK: Tensor, k_BGTK: Tensor, v_BGTK: Tensor, cap: float) -> Tensor:
    k, v = (x.repeat_interleave(q_BHTK.shape[1] // k_BGTK.shape[1], 1) for x in (k_BGTK, v_BGTK))
    s_BHTT = cap * torch.tanh(q_BHTK @ k.transpose(-1, -2) / (K**0.5 * cap))
    future_TT = torch.ones(T, T, dtype=torch.bool).triu(1)
    return s_BHTT.masked_fill(future_TT, float("-inf")).softmax(-1) @ v


@pytest.mark.parametrize("groups", [4, 2, 1])
@pytest.mark.parametrize("block", [256, 20, 7, 1])
def test_equals_the_whole_matrix(monkeypatch: pytest.MonkeyPatch, groups: int, block: int) -> None:
    """Output and gradients, also where blocks of queries cut the sequence unevenly."""
    monkeypatch.setattr(module, "QUERY_BLOCK", block)
    ours, theirs = inputs(groups), inputs(groups)
    y, expected = capped_attention(*ours, K**-0.5, 5.0), whole_matrix(*theirs, 5.0)
    torch.testing.assert_close(y, expected, rtol=1e-12, atol=1e-12)
    cotangent = torch.randn(y.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    (y * cotangent).sum().backward()
    (expected * cotangent).sum().backward()
    for mine, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine.grad, other.grad, rtol=1e-10, atol=1e-10)


def test_a_cap_far_above_the_logits_is_no_cap() -> None:
    q, k, v = inputs(4)
    plain = F.scaled_dot_product_attention(q, k, v, is_causal=True)
    torch.testing.assert_close(capped_attention(q, k, v, K**-0.5, 1e6), plain, rtol=1e-7, atol=1e-7)


def test_bf16_is_capped_in_fp32() -> None:
    """Against the exact attention of the same bf16 inputs: what is left is bf16's rounding of inputs to a product."""
    q, k, v = inputs(2, torch.bfloat16)
    y = capped_attention(q, k, v, K**-0.5, 5.0)
    assert y.dtype == torch.bfloat16
    expected = whole_matrix(q.double(), k.double(), v.double(), 5.0)
    assert (y - expected).norm() < 2**-7 * expected.norm()


def test_softcap_bounds_and_keeps_small_values() -> None:
    x = torch.tensor([-1e4, -0.01, 0.0, 0.01, 1e4])
    torch.testing.assert_close(softcap(x, 30.0), torch.tensor([-30.0, -0.01, 0.0, 0.01, 30.0]), rtol=1e-5, atol=0)
    assert softcap(x.bfloat16(), 30.0).dtype == torch.bfloat16
