"""The rotation and its gradient against complex multiplication in float64.

Shapes: B batch, T sequence, H heads, K head size.
"""

import torch
from torch import Tensor

from model.rotary import RotaryEmbedding

B, T, H, K, THETA = 2, 6, 3, 8, 100.0


def definition(x_BHTK: Tensor, direction: float = 1.0) -> Tensor:
    frequency = THETA ** (-torch.arange(0, K, 2).double() / K)
    angle = direction * torch.outer(torch.arange(T).double(), frequency)
    z = torch.complex(*x_BHTK.double().chunk(2, -1)) * torch.polar(torch.ones_like(angle), angle)
    return torch.cat([z.real, z.imag], -1)


def heads(seed: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Queries as attention sees them: cut from a wider projection, heads interleaved."""
    projection_BTD = torch.randn(B, T, 2 * H * K, generator=torch.Generator().manual_seed(seed)).to(dtype)
    return projection_BTD[..., : H * K].unflatten(-1, (H, K)).transpose(1, 2)


def test_rotation_and_gradient_equal_complex_multiplication() -> None:
    x, grad = heads(0).requires_grad_(), heads(1)
    y = RotaryEmbedding(K, T + 2, THETA)(x)
    y.backward(grad)
    assert x.grad is not None
    torch.testing.assert_close(y.detach().double(), definition(x.detach()), rtol=0, atol=1e-6)
    torch.testing.assert_close(x.grad.double(), definition(grad, -1.0), rtol=0, atol=1e-6)


def test_bf16_is_rounded_once() -> None:
    x, grad = heads(0, torch.bfloat16).requires_grad_(), heads(1, torch.bfloat16)
    y = RotaryEmbedding(K, T, THETA)(x)
    y.backward(grad)
    assert y.dtype == torch.bfloat16 and x.grad is not None
    torch.testing.assert_close(y.detach().double(), definition(x.detach()), rtol=2**-8, atol=1e-6)
    torch.testing.assert_close(x.grad.double(), definition(grad, -1.0), rtol=2**-8, atol=1e-6)
