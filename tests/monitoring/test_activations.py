"""How close the tokens of a sequence are, from summaries of its parts.

Shapes: B sequences, T tokens, D hidden.
"""

import pytest
import torch
from torch import Tensor

from monitoring.activations import summarise_tokens, token_collapse

B, T, D = 3, 24, 16


def exact(x_BTD: Tensor) -> tuple[Tensor, Tensor]:
    """Mean cosine of all pairs of tokens, and the relative residual, in float64."""
    x = x_BTD.double()
    direction = x / x.norm(dim=-1, keepdim=True)
    cosine = (direction @ direction.transpose(1, 2))[:, ~torch.eye(T, dtype=torch.bool)].mean(1)
    return cosine, (x - x.mean(1, keepdim=True)).norm(dim=(1, 2)) / x.norm(dim=(1, 2))


@pytest.mark.parametrize("shares", [1, 2, 4])
@pytest.mark.parametrize("apart", [10.0, 1.0, 1e-2, 1e-4], ids=lambda a: f"apart {a}")
def test_tokens_from_scattered_to_collapsed(apart: float, shares: int) -> None:
    """Where 1 - cosine is 1e-8 the residual is still right to a thousandth."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(B, 1, D, generator=generator) + apart * torch.randn(B, T, D, generator=generator)
    parts = torch.stack([summarise_tokens(part) for part in x.chunk(shares, dim=1)])
    cosine, residual = token_collapse(parts, T // shares)
    expected_cosine, expected_residual = exact(x)
    torch.testing.assert_close(cosine, expected_cosine, rtol=0, atol=1e-6)
    torch.testing.assert_close(residual, expected_residual, rtol=1e-3, atol=0)


def test_a_token_that_is_zero_has_no_direction() -> None:
    x = torch.ones(1, 4, D)
    x[0, 2] = 0
    cosine, residual = token_collapse(summarise_tokens(x)[None], 4)
    assert cosine.item() == pytest.approx(6 / 12)
    assert residual.isfinite().all()


def test_bf16_outputs_are_summarised_in_fp32() -> None:
    x = torch.randn(B, T, D).bfloat16()
    cosine, residual = token_collapse(summarise_tokens(x)[None], T)
    expected_cosine, expected_residual = exact(x)
    torch.testing.assert_close(cosine, expected_cosine, rtol=0, atol=1e-6)
    torch.testing.assert_close(residual, expected_residual, rtol=1e-5, atol=0)
