"""One tensor of another system, the tensors of ours that it is made of, and how: every form goes both ways.

Shapes: O out-features, I in-features; H heads, K head size.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

Shape = tuple[int, ...]


class Form(Protocol):
    """How tensors of ours become one of theirs, and come back out of it."""

    def shape(self, shapes: Sequence[Shape]) -> Shape:
        """Of theirs, given ours."""

    def pack(self, tensors: Sequence[Tensor]) -> Tensor:
        """Ours -> theirs."""

    def unpack(self, tensor: Tensor, shapes: Sequence[Shape]) -> list[Tensor]:
        """Theirs -> ours, whose shapes are given."""


class Same:
    """One tensor, as it is."""

    def shape(self, shapes: Sequence[Shape]) -> Shape:
        return shapes[0]

    def pack(self, tensors: Sequence[Tensor]) -> Tensor:
        return tensors[0]

    def unpack(self, tensor: Tensor, shapes: Sequence[Shape]) -> list[Tensor]:
        return [tensor]


class Transposed:
    """(O, I) of ours, one below the other, as one (I, sum of O): GPT-2's Conv1D. Biases one after the other."""

    def shape(self, shapes: Sequence[Shape]) -> Shape:
        return (*shapes[0][1:], sum(shape[0] for shape in shapes))

    def pack(self, tensors: Sequence[Tensor]) -> Tensor:
        return torch.cat(list(tensors)).movedim(0, -1).contiguous()

    def unpack(self, tensor: Tensor, shapes: Sequence[Shape]) -> list[Tensor]:
        return list(tensor.movedim(-1, 0).split([shape[0] for shape in shapes]))


@dataclass(frozen=True)
class Interleaved:
    """q, k and v, each (H K, I) or (H K), head by head: (H 3 K, I) or (H 3 K)."""

    head_size: int

    def shape(self, shapes: Sequence[Shape]) -> Shape:
        return (sum(shape[0] for shape in shapes), *shapes[0][1:])

    def pack(self, tensors: Sequence[Tensor]) -> Tensor:
        heads = [tensor.unflatten(0, (-1, self.head_size)) for tensor in tensors]
        return torch.stack(heads, dim=1).flatten(0, 2)

    def unpack(self, tensor: Tensor, shapes: Sequence[Shape]) -> list[Tensor]:
        parts = tensor.unflatten(0, (-1, len(shapes), self.head_size)).unbind(1)
        return [part.flatten(0, 1) for part in parts]


class MinusOne:
    """A scale s kept as s - 1: Gemma's norms, which multiply by 1 + weight."""

    def shape(self, shapes: Sequence[Shape]) -> Shape:
        return shapes[0]

    def pack(self, tensors: Sequence[Tensor]) -> Tensor:
        return tensors[0] - 1

    def unpack(self, tensor: Tensor, shapes: Sequence[Shape]) -> list[Tensor]:
        return [tensor + 1]


SAME = Same()
TRANSPOSED = Transposed()
MINUS_ONE = MinusOne()


@dataclass(frozen=True)
class Entry:
    """`theirs` is made of `ours`. Where a model of ours has no such biases, the entry is left out, or all zeros."""

    theirs: str
    ours: tuple[str, ...]
    form: Form = SAME
    zeros: bool = False
    """Their architecture has the tensor whether ours has it or not: zeros stand for a bias that ours has not."""

    def shape(self, parameters: dict[str, Shape]) -> Shape:
        """Of theirs."""
        return self.form.shape(self.shapes(parameters))

    def shapes(self, parameters: dict[str, Shape]) -> list[Shape]:
        """Of ours, `parameters` being all of them; a bias that ours has not would have a number for each row."""
        return [parameters.get(name) or parameters[name.replace(".bias", ".weight")][:1] for name in self.ours]


def one(theirs: str, ours: str, *, zeros: bool = False, form: Form = SAME) -> Entry:
    """An entry of a single tensor of ours."""
    return Entry(theirs, (ours,), form, zeros)
