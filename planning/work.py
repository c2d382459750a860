"""What code makes a device do: operations counted one by one as they are dispatched, on tensors without memory.

Counting what the model really runs, instead of writing its operations down a second time, keeps a plan true for every
recipe and after every change of the model.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, Self, TypeVar

from torch import Tensor
from torch.utils.flop_counter import flop_registry

from planning.alive import AliveBytes, size_of, tensors_in

T = TypeVar("T")
ATTENTION = "scaled_dot_product"
FREE = {"empty", "empty_like", "new_empty", "empty_strided", "new_empty_strided"}
"""Make a tensor and leave it as it is."""


@dataclass(frozen=True)
class Amounts:
    """Numbers, or amounts of several kinds, that add up and scale together."""

    def __add__(self, other: Self) -> Self:
        return type(self)(*(getattr(self, f.name) + getattr(other, f.name) for f in fields(self)))

    def __mul__(self, factor: float) -> Self:
        return type(self)(*(getattr(self, f.name) * factor for f in fields(self)))

    def __sub__(self, other: Self) -> Self:
        return self + other * -1.0


@dataclass(frozen=True)
class Work(Amounts):
    """Of one stretch of code on one rank."""

    matrix_flops: float = 0.0
    attention_flops: float = 0.0
    """Of fused causal attention: the half of the scores that causality leaves; backward makes them again."""
    traffic: float = 0.0
    """Bytes that all other operations read and write, each by itself as an uncompiled model runs them."""
    launches: float = 0.0
    """Operations, each a kernel or more."""
    reduced: float = 0.0
    """Bytes given to all-reduces over tensor-parallel ranks."""
    gathered: float = 0.0
    """Bytes of the whole tensors that tensor-parallel ranks gather or reduce-scatter."""
    collectives: float = 0.0
    """Calls of either."""


class CountWork(AliveBytes):
    """Counts, inside its `with` block, what is dispatched, and as `AliveBytes` the bytes alive."""

    def __init__(self, given: Iterable[Tensor] = ()) -> None:
        super().__init__(given)
        self._counted = Work()

    def take(self) -> Work:
        """What was counted since the last call."""
        work, self._counted = self._counted, Work()
        return work

    def once(self, pieces: Sequence[T]) -> Iterator[T]:
        """Of pieces that are all the same work, but for the last, the first and the last: the first counts for all."""
        *equal, last = pieces
        if equal:
            before = self._counted
            yield equal[0]
            self._counted += (self._counted - before) * (len(equal) - 1)
        yield last

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        result = super().__torch_dispatch__(func, types, args, kwargs)
        self._counted += _work_of(func, args, kwargs or {}, result)
        return result


def _work_of(func: Any, args: Sequence[Any], kwargs: Mapping[str, Any], result: Any) -> Work:
    domain, _, name = func._schema.name.partition("::")
    inputs, outputs = list(tensors_in((args, tuple(kwargs.values())))), list(tensors_in(result))
    if domain in ("c10d", "_c10d_functional"):
        return _collective(name, max((size_of(tensor) for tensor in inputs), default=0))
    if domain != "aten" or name in FREE or not outputs:
        return Work()
    if ATTENTION in name:
        return Work(attention_flops=_attention_flops(name, inputs), launches=1)
    if func.overloadpacket in flop_registry:
        return Work(matrix_flops=flop_registry[func.overloadpacket](*args, **kwargs, out_val=result), launches=1)
    if _is_view(func, inputs, outputs):
        return Work()
    return Work(traffic=sum(map(size_of, inputs)) + sum(map(size_of, outputs)), launches=1)


def _collective(name: str, size: int) -> Work:
    if name.startswith(("allreduce", "all_reduce")):
        return Work(reduced=size, collectives=1)
    return Work(gathered=size, collectives=1) if "gather" in name or "scatter" in name else Work()


def _attention_flops(name: str, inputs: Sequence[Tensor]) -> float:
    """Two products of causal scores forward; five backward, where the scores are made again (Dao 2023)."""
    backward = "backward" in name
    batch, heads, length, size = inputs[1 if backward else 0].shape
    return (5 if backward else 2) * batch * heads * length**2 * size


def _is_view(func: Any, inputs: Sequence[Tensor], outputs: Sequence[Tensor]) -> bool:
    if func.is_view:
        return True
    if func._schema.is_mutable:
        return False
    held = {tensor.untyped_storage()._cdata for tensor in inputs}
    return all(tensor.untyped_storage()._cdata in held for tensor in outputs)
