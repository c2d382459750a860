"""Attention entropy against the full matrix in float64, and the paper's lower bound.

Shapes: B batch, H query heads, G key/value heads, T sequence, K head size.
"""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from monitoring import entropy as module
from monitoring.entropy import attention_statistics, causal_maximum, entropy_lower_bound

K = 16


def full_matrix(q_BHTK: Tensor, k_BGTK: Tensor, scale: float, cap: float = math.inf) -> tuple[Tensor, Tensor]:
    """Entropy and largest logit of every row from the whole attention matrix, in float64."""
    q, k = q_BHTK.double(), k_BGTK.double().repeat_interleave(q_BHTK.shape[1] // k_BGTK.shape[1], 1)
    scores = q @ k.transpose(-1, -2) * scale
    if cap < math.inf:
        scores = cap * torch.tanh(scores / cap)
    scores = scores.masked_fill(torch.ones(q.shape[2], q.shape[2]).triu(1).bool(), -math.inf)
    log_a = scores.log_softmax(-1)
    return -(log_a.exp() * log_a.masked_fill(log_a == -math.inf, 0)).sum(-1), scores.amax(-1)


def heads(length: int, sharpness: float, groups: int = 4, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    q = torch.randn(2, 4, length, K, generator=generator) * sharpness
    return q, torch.randn(2, groups, length, K, generator=generator)


SHAPES = [(16, 4), (64, 4), (64, 2), (257, 4), (257, 2), (257, 1), (1500, 2), (2048, 2)]


@pytest.mark.parametrize("sharpness", [0.1, 1.0, 10.0, 300.0], ids=lambda s: f"sharpness {s}")
@pytest.mark.parametrize(("length", "groups"), SHAPES)
def test_equals_the_full_matrix(length: int, groups: int, sharpness: float) -> None:
    """From uniform to collapsed heads (largest logit over 1,000), with grouped queries and lengths off the blocks."""
    q, k = heads(length, sharpness, groups)
    entropy, largest = full_matrix(q, k, K**-0.5)
    ours = attention_statistics(q, k, K**-0.5)
    torch.testing.assert_close(ours.entropy_BHT.double(), entropy, rtol=0, atol=1e-4)
    torch.testing.assert_close(ours.max_logit_BHT.double(), largest, rtol=1e-5, atol=1e-5)
    assert (ours.entropy_BHT >= -1e-5).all()


@pytest.mark.parametrize(("length", "groups"), [(1, 4), (64, 2), (257, 1), (1500, 2)])
@pytest.mark.parametrize("sharpness", [0.1, 1.0, 10.0], ids=lambda s: f"sharpness {s}")
def test_bound_of_every_row_from_its_spread(length: int, groups: int, sharpness: float) -> None:
    """s_i over row i's own i + 1 logits, from the full matrix in float64; and no row is below its bound."""
    q, k = heads(length, sharpness, groups)
    scores = q.double() @ k.double().repeat_interleave(4 // groups, 1).transpose(-1, -2) * K**-0.5
    spread = torch.stack(
        [scores[:, :, i, : i + 1].var(-1, unbiased=False).mul(i + 1).sqrt() for i in range(length)], -1
    )
    expected = entropy_lower_bound(spread, torch.arange(1, length + 1))
    ours = attention_statistics(q, k, K**-0.5)
    torch.testing.assert_close(ours.bound_BHT.double(), expected, rtol=0, atol=1e-4)
    assert (ours.entropy_BHT - ours.bound_BHT >= -1e-4).all()
    assert (ours.bound_BHT[..., 1:] > 0).any() or length == 1 or sharpness == 10


@pytest.mark.parametrize("sharpness", [0.1, 10.0, 300.0], ids=lambda s: f"sharpness {s}")
@pytest.mark.parametrize(("length", "groups"), [(1, 4), (257, 1), (1100, 2)])
def test_capped_logits_equal_the_full_matrix(length: int, groups: int, sharpness: float) -> None:
    """Entropy, largest logit and bound of cap * tanh(s / cap), from logits it hardly bends to ones it flattens."""
    q, k = heads(length, sharpness, groups)
    cap = 20.0
    entropy, largest = full_matrix(q, k, K**-0.5, cap)
    ours = attention_statistics(q, k, K**-0.5, cap)
    torch.testing.assert_close(ours.entropy_BHT.double(), entropy, rtol=0, atol=1e-4)
    torch.testing.assert_close(ours.max_logit_BHT.double(), largest, rtol=1e-5, atol=1e-5)
    scores = q.double() @ k.double().repeat_interleave(4 // groups, 1).transpose(-1, -2) * K**-0.5
    scores, keys = cap * torch.tanh(scores / cap), torch.arange(1, length + 1)
    mean = scores.tril().sum(-1) / keys
    expected = entropy_lower_bound((scores - mean[..., None]).tril().norm(dim=-1), keys)
    torch.testing.assert_close(ours.bound_BHT.double(), expected, rtol=0, atol=1e-4)


def test_sharp_heads_are_really_collapsed() -> None:
    q, k = heads(257, 300.0)
    entropy, largest = full_matrix(q, k, K**-0.5)
    assert entropy.mean() < 0.1 and largest.max() > 1000


def test_bf16_inputs_lose_nothing_more() -> None:
    """Queries and keys of a bf16 run, collapsed head: the entropy of exactly those values."""
    q, k = (t.bfloat16() for t in heads(512, 30.0))
    entropy, _ = full_matrix(q, k, K**-0.5)
    torch.testing.assert_close(attention_statistics(q, k, K**-0.5).entropy_BHT.double(), entropy, rtol=0, atol=1e-4)


def test_float64_is_exact() -> None:
    q, k = (t.double() for t in heads(300, 3.0))
    entropy, _ = full_matrix(q, k, K**-0.5)
    torch.testing.assert_close(attention_statistics(q, k, K**-0.5).entropy_BHT, entropy, rtol=0, atol=1e-12)


def test_blocks_do_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    q, k = (t.double() for t in heads(100, 5.0))
    whole = attention_statistics(q, k, K**-0.5)
    monkeypatch.setattr(module, "QUERY_BLOCK", {"cpu": 7})
    monkeypatch.setattr(module, "KEY_BLOCK", 13)
    monkeypatch.setattr(module, "SCORES", {"cpu": 300})
    split = attention_statistics(q, k, K**-0.5)
    torch.testing.assert_close(split.entropy_BHT, whole.entropy_BHT, rtol=0, atol=1e-12)
    torch.testing.assert_close(split.bound_BHT, whole.bound_BHT, rtol=0, atol=1e-12)
    torch.testing.assert_close(split.max_logit_BHT, whole.max_logit_BHT, rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("length", "nats"), [(64, 3.2058), (128, 3.8782), (512, 5.2462), (2048, 6.6269), (4096, 7.3190)]
)
def test_causal_maximum(length: int, nats: float) -> None:
    assert abs(causal_maximum(length) - nats) < 5e-5
    if length <= 512:
        uniform = attention_statistics(torch.zeros(1, 1, length, K), torch.zeros(1, 1, length, K), 1.0)
        assert abs(uniform.entropy_BHT.mean().item() - causal_maximum(length)) < 1e-5


@pytest.mark.parametrize(
    ("spread", "keys", "nats"),
    [(2, 64, 4.0411), (5, 64, 1.8026), (10, 64, 0.029206), (20, 64, 2.35e-6), (10, 512, 0.24751)],
)
def test_lower_bound_values(spread: float, keys: int, nats: float) -> None:
    bound = entropy_lower_bound(torch.tensor(float(spread), dtype=torch.float64), torch.tensor(keys))
    assert abs(bound.item() - nats) < 5e-3 * nats


@settings(max_examples=200, deadline=None)
@given(
    keys=st.integers(1, 200),
    sharpness=st.floats(0, 50),
    seed=st.integers(0, 2**31),
    one_hot=st.booleans(),
)
def test_no_row_is_below_its_lower_bound(keys: int, sharpness: float, seed: int, one_hot: bool) -> None:
    """Any logits, the extremal ones (one key stands out) included, where the bound is tight."""
    logits = torch.randn(keys, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)) * sharpness
    if one_hot:
        logits = torch.zeros(keys, dtype=torch.float64)
        logits[0] = sharpness
    spread = (logits - logits.mean()).norm()
    log_a = logits.log_softmax(0)
    entropy = -(log_a.exp() * log_a).sum()
    bound = entropy_lower_bound(spread, torch.tensor(keys))
    assert bound <= entropy + 1e-9
    if one_hot and keys > 1:
        assert abs(bound - entropy) < 1e-9
