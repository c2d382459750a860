"""Rotary position embedding (Su et al. 2021), in the half-split convention of GPT-NeoX and Llama.

Shapes: B batch, H heads, T sequence, K head size, k half of it.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable


class RotaryEmbedding(nn.Module):
    """Rotates pairs (i, i + K/2) of queries or keys by position x theta^(-2i/K); (B, H, T, K) -> (B, H, T, K).

    Computed in fp32 and returned in the input's dtype.
    """

    cos_TK: Tensor
    sin_Tk: Tensor

    def __init__(self, head_size: int, length: int, theta: float) -> None:
        super().__init__()
        frequency_k = theta ** (-torch.arange(0, head_size, 2, dtype=torch.float64) / head_size)
        angle_Tk = torch.outer(torch.arange(length, dtype=torch.float64), frequency_k)
        self.register_buffer("cos_TK", angle_Tk.cos().float().repeat(1, 2), persistent=False)
        self.register_buffer("sin_Tk", angle_Tk.sin().float(), persistent=False)

    def forward(self, x_BHTK: Tensor, first: int = 0) -> Tensor:
        """`first`: the position of the first token."""
        last = first + x_BHTK.shape[-2]
        return _Rotation.apply(x_BHTK, self.cos_TK[first:last], self.sin_Tk[first:last])


class _Rotation(torch.autograd.Function):
    """The transpose of a rotation is the rotation back: nothing is kept for the backward pass but the tables."""

    @staticmethod
    def forward(ctx: Any, x_BHTK: Tensor, cos_TK: Tensor, sin_Tk: Tensor) -> Tensor:
        ctx.save_for_backward(cos_TK, sin_Tk)
        return _rotate(x_BHTK, cos_TK, sin_Tk, 1.0)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_BHTK: Tensor) -> tuple[Tensor, None, None]:
        cos_TK, sin_Tk = ctx.saved_tensors
        return _rotate(grad_BHTK, cos_TK, sin_Tk, -1.0), None, None


def _rotate(x_BHTK: Tensor, cos_TK: Tensor, sin_Tk: Tensor, direction: float) -> Tensor:
    """One result, written once and added to in place: halves and their products are never joined."""
    wide_BHTK = x_BHTK.float()
    # Contiguous, whatever the strides of x: heads cut from one projection lie interleaved, which is slow to write.
    rotated_BHTK = torch.mul(wide_BHTK, cos_TK, out=wide_BHTK.new_empty(wide_BHTK.shape))
    first_BHTk, second_BHTk = wide_BHTK.chunk(2, dim=-1)
    first_out_BHTk, second_out_BHTk = rotated_BHTK.chunk(2, dim=-1)
    first_out_BHTk.addcmul_(second_BHTk, sin_Tk, value=-direction)
    second_out_BHTk.addcmul_(first_BHTk, sin_Tk, value=direction)
    return rotated_BHTK.to(x_BHTK.dtype)
