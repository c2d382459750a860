"""The largest logit of each head, against the whole matrix of scores."""

from unittest.mock import patch

import pytest
import torch

from monitoring import logits
from monitoring.logits import largest_logits

SHAPES = {"one row": (2, 3, 3, 1), "blocks that do not divide": (2, 4, 4, 77), "grouped queries": (3, 6, 2, 70)}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", SHAPES)
def test_equals_the_maximum_of_the_whole_causal_matrix(name: str, dtype: torch.dtype) -> None:
    batch, heads, groups, length = SHAPES[name]
    generator = torch.Generator().manual_seed(0)
    q = torch.randn(batch, heads, length, 8, generator=generator).to(dtype)
    k = torch.randn(batch, groups, length, 8, generator=generator).to(dtype)
    q[:, :, : length // 2] *= 100  # the largest products are of keys that these rows must not see
    scores = q.double() @ k.double().repeat_interleave(heads // groups, dim=1).transpose(-1, -2) * 0.3
    future = torch.ones(length, length, dtype=torch.bool).triu(1)
    expected = scores.masked_fill(future, -torch.inf).amax((0, 2, 3))
    assert length == 1 or not torch.equal(expected, scores.amax((0, 2, 3)))
    with patch.multiple(logits, KEY_BLOCK=24, SCORES={"cpu": 4096}):  # several blocks of keys, and of heads
        actual = largest_logits(q, k, 0.3)
    torch.testing.assert_close(actual.double(), expected, rtol=1e-5, atol=0)
    torch.testing.assert_close(largest_logits(q, k, 0.3), actual)
