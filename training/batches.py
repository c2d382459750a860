"""The global batch of a step, cut to this rank's share, and read ahead of training.

Shapes: B sequences of this data-parallel rank, T tokens.
"""

from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Protocol, Self

import numpy as np
import torch
from torch import Tensor

from parallel.topology import Topology


class SampleSource(Protocol):
    """Sample k of a run, a function of (seed, k) alone: T + 1 token ids."""

    def __getitem__(self, k: int) -> np.ndarray: ...


class Batches:
    """Step s takes samples s·G … s·G + G - 1 of the run; data-parallel rank r takes the r-th share of them.

    Any step can be asked for in any layout. With `prefetch`, a thread reads that many of the steps after the one asked
    for; a step that is none of them (after a rollback) is read at once, and they are forgotten. An error of the thread
    is raised by `step` when it comes to that batch. As a context manager it leaves no thread behind.
    """

    def __init__(self, samples: SampleSource, global_batch_size: int, topology: Topology, *, prefetch: int = 0) -> None:
        self._samples = samples
        self._global = global_batch_size
        self._share = global_batch_size // topology.dp_size
        self._first = topology.dp_rank * self._share
        self._device = topology.device
        self._prefetch = prefetch
        # A thread that starts with the first task, and in which pinning memory must not take another rank's device.
        self._reader = ThreadPoolExecutor(1, "batches", initializer=_take_device, initargs=(topology.device,))
        self._ahead: deque[tuple[int, Future[Tensor]]] = deque()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._reader.shutdown(cancel_futures=True)

    def step(self, step: int) -> tuple[Tensor, Tensor]:
        """(tokens, targets), each (B, T) int64; targets are the tokens one position later."""
        window_BT = self._read_ahead(step) if self._prefetch else self._read(step)
        window_BT = window_BT.to(self._device, non_blocking=True)
        return window_BT[:, :-1].contiguous(), window_BT[:, 1:].contiguous()

    def _read_ahead(self, step: int) -> Tensor:
        while self._ahead and self._ahead[0][0] != step:
            self._ahead.popleft()[1].cancel()
        wanted = self._ahead.popleft()[1] if self._ahead else self._reader.submit(self._read, step)
        for later in range(step + len(self._ahead) + 1, step + self._prefetch + 1):
            self._ahead.append((later, self._reader.submit(self._read, later)))
        return wanted.result()

    def _read(self, step: int) -> Tensor:
        """Samples of a step with the token after the last, (B, T + 1); pinned where a device is to copy them."""
        start = step * self._global + self._first
        window_BT = torch.from_numpy(np.stack([self._samples[k] for k in range(start, start + self._share)]))
        return window_BT.pin_memory() if self._device.type == "cuda" else window_BT


def _take_device(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.set_device(device)
