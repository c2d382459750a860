"""Rotary position embedding (Su et al. 2021), in the half-split convention of GPT-NeoX and Llama.

Shapes: B batch, H heads, T sequence, K head size.
"""

import torch
from torch import Tensor, nn


class RotaryEmbedding(nn.Module):
    """Rotates pairs (i, i + K/2) of queries or keys by position x theta^(-2i/K); (B, H, T, K) -> (B, H, T, K)."""

    cos_TK: Tensor
    sin_TK: Tensor

    def __init__(self, head_size: int, length: int, theta: float) -> None:
        super().__init__()
        frequency_k = theta ** (-torch.arange(0, head_size, 2, dtype=torch.float64) / head_size)
        angle_Tk = torch.outer(torch.arange(length, dtype=torch.float64), frequency_k)
        angle_TK = torch.cat([angle_Tk, angle_Tk], dim=-1)
        self.register_buffer("cos_TK", angle_TK.cos().float(), persistent=False)
        self.register_buffer("sin_TK", angle_TK.sin().float(), persistent=False)

    def forward(self, x_BHTK: Tensor) -> Tensor:
        length = x_BHTK.shape[-2]
        first, second = x_BHTK.float().chunk(2, dim=-1)
        turned_BHTK = torch.cat([-second, first], dim=-1)
        rotated_BHTK = x_BHTK.float() * self.cos_TK[:length] + turned_BHTK * self.sin_TK[:length]
        return rotated_BHTK.to(x_BHTK.dtype)
