"""The toy problem: a linear map of white noise, whose best forecast has a mean squared error of 1.

Shapes: N series, D channels, L steps seen, H steps forecast.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

CHANNELS = 7


@dataclass(frozen=True)
class Size:
    """`length` seen, `horizon` forecast; series to train on, to choose by and to test on."""

    length: int = 64
    horizon: int = 16
    train: int = 2000
    val: int = 1000
    test: int = 1000


FULL = Size(length=512, horizon=96, train=10_000, val=5_000, test=2_000)


@dataclass(frozen=True)
class Split:
    """`x_NDL` seen and `y_NDH` to be forecast."""

    x_NDL: Tensor
    y_NDH: Tensor


def draw(size: Size, seed: int) -> dict[str, Split]:
    """`train`, `val` and `test` of Y = X W + noise, all of them normal with variance 1; one W (L, H) for all channels.

    Source: Ilbert et al. 2024, section 3.1.
    """
    generator = torch.Generator().manual_seed(seed)
    w_LH = torch.randn(size.length, size.horizon, generator=generator)
    splits = {}
    for name, count in (("train", size.train), ("val", size.val), ("test", size.test)):
        x_NDL = torch.randn(count, CHANNELS, size.length, generator=generator)
        noise_NDH = torch.randn(count, CHANNELS, size.horizon, generator=generator)
        splits[name] = Split(x_NDL, x_NDL @ w_LH + noise_NDH)
    return splits
