"""Bytes of tensors alive, counted storage by storage while code runs, on real or on fake tensors.

Process memory says how much an allocator and an interpreter hold; a plan speaks of tensors. Both are compared in
`benchmarks.plan_memory`.
"""

import weakref
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode


class AliveBytes(TorchDispatchMode):
    """Counts, inside its `with` block, the bytes of every storage that an operation returns until it is freed.

    Views and in-place results share a storage and are counted once.
    """

    def __init__(self, given: Iterable[Tensor] = ()) -> None:
        """`given`: tensors that are there already and are not to be counted, nor views of them."""
        super().__init__()
        self.now = 0
        self.peak = 0
        self._known: dict[int, int] = {}
        self._given = [tensor.untyped_storage() for tensor in given]
        self._known.update((storage._cdata, 0) for storage in self._given)

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        self._watch(tensors_in(result))
        return result

    def _watch(self, tensors: Iterable[Tensor]) -> None:
        for tensor in tensors:
            if tensor.is_meta:  # a shape without memory; a fake tensor stands for one that has some
                continue
            storage = tensor.untyped_storage()
            key = storage._cdata
            size = storage.nbytes()
            if key in self._known or not size:
                continue
            self._known[key] = size
            weakref.finalize(storage, self._freed, key)
            self.now += size
        self.peak = max(self.peak, self.now)

    @contextmanager
    def phase(self) -> Iterator["Phase"]:
        """Within the block, the peak is that of the block."""
        before, self.peak = self.peak, self.now
        phase = Phase(self.now)
        try:
            yield phase
        finally:
            phase.peak, phase.after = self.peak, self.now
            self.peak = max(before, self.peak)

    def _freed(self, key: int) -> None:
        self.now -= self._known.pop(key)


class Phase:
    """Bytes alive when a block of code began and ended, and the most in between."""

    def __init__(self, before: int) -> None:
        self.before = before
        self.peak = self.after = before


def tensors_in(result: Any) -> Iterator[Tensor]:
    """Every tensor in a nest of tuples and lists."""
    if isinstance(result, Tensor):
        yield result
    elif isinstance(result, (tuple, list)):
        for part in result:
            yield from tensors_in(part)


def tensor_bytes(tensors: Iterable[Tensor | None]) -> int:
    """Bytes of the storages behind tensors, each storage once."""
    storages = {t.untyped_storage()._cdata: t.untyped_storage().nbytes() for t in tensors if t is not None}
    return sum(storages.values())


def size_of(tensor: Tensor) -> int:
    """Bytes of its elements."""
    return tensor.numel() * tensor.element_size()
