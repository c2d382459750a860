"""The global batch of a step, cut to this rank's share.

Shapes: B sequences of this data-parallel rank, T tokens.
"""

from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from parallel.topology import Topology


class SampleSource(Protocol):
    """Sample k of a run, a function of (seed, k) alone: T + 1 token ids."""

    def __getitem__(self, k: int) -> np.ndarray: ...


class Batches:
    """Step s takes samples s·G … s·G + G - 1 of the run; data-parallel rank r takes the r-th share of them.

    No state: any step can be asked for in any layout.
    """

    def __init__(self, samples: SampleSource, global_batch_size: int, topology: Topology) -> None:
        self._samples = samples
        self._global = global_batch_size
        self._share = global_batch_size // topology.dp_size
        self._first = topology.dp_rank * self._share
        self._device = topology.device

    def step(self, step: int) -> tuple[Tensor, Tensor]:
        """(tokens, targets), each (B, T) int64; targets are the tokens one position later."""
        start = step * self._global + self._first
        window_BT = torch.from_numpy(np.stack([self._samples[k] for k in range(start, start + self._share)]))
        window_BT = window_BT.to(self._device)
        return window_BT[:, :-1].contiguous(), window_BT[:, 1:].contiguous()
