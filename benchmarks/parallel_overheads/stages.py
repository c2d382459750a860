"""Chunks of a pipeline whose parts can be timed: some that sleep for a given time, some that compute.

Shapes: B sequences of a micro-batch, T tokens, D features.
"""

import time
from typing import Any

import torch
from torch import Tensor, nn

from parallel.bubble import StageTimes


class _Input(torch.autograd.Function):
    """The identity; forward and the gradient of the input sleep."""

    @staticmethod
    def forward(ctx: Any, x_BTD: Tensor, times: StageTimes) -> Tensor:
        ctx.times = times
        time.sleep(times.forward)
        return x_BTD.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        time.sleep(ctx.times.backward_input)
        return gradients[0], None


class _Weight(torch.autograd.Function):
    """The identity; the gradient sleeps. Added to the output of `_Input`, so that either side can be asked alone."""

    @staticmethod
    def forward(ctx: Any, weight_D: Tensor, times: StageTimes) -> Tensor:
        ctx.times = times
        return weight_D.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        time.sleep(ctx.times.backward_weight)
        return gradients[0], None


class SleepingChunk(nn.Module):
    """Takes the time it is told and no core: more ranks than cores can run at once.

    Its backward has two sides that autograd can take apart, as a linear has: input and weight.
    """

    def __init__(self, stage: int, width: int, times: StageTimes) -> None:
        super().__init__()
        self.embedding = nn.Parameter(torch.zeros(width)) if stage == 0 else None
        self.weight = nn.Parameter(torch.zeros(width))
        self._times = times

    def forward(self, x: Tensor) -> Tensor:
        """(B, T) tokens into the first stage, else (B, T, D); (B, T, D) out."""
        x_BTD = x if self.embedding is None else x.unsqueeze(-1) * self.embedding
        return _Input.apply(x_BTD, self._times) + _Weight.apply(self.weight, self._times)


class ComputingChunk(nn.Module):
    """Square linears with GELUs; the first stage looks its tokens up before."""

    def __init__(self, stage: int, width: int, depth: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(16, width) if stage == 0 else None
        self.layers = nn.Sequential(*(nn.Sequential(nn.Linear(width, width), nn.GELU()) for _ in range(depth)))

    def forward(self, x: Tensor) -> Tensor:
        """(B, T) tokens into the first stage, else (B, T, D); (B, T, D) out."""
        return self.layers(x if self.embedding is None else self.embedding(x))


def mean_square(output_BTD: Tensor, targets_BT: Tensor) -> Tensor:
    """A loss that costs little; the targets do not count."""
    return output_BTD.square().mean() + 0 * targets_BT[0, 0]
