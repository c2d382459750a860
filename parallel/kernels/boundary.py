"""The step boundary's moves over whole matrices as Triton kernels: one launch each for all matrices of a stack.

Matrices differ in shape and lie anywhere, so a program learns from tables which block of which matrix is its own. A
block belongs to one program, which adds it up in one order, and partial sums are added by segments: no atomics, so that
a resumed run repeats every bit. Sums are in fp32, or in fp64 where the weights are.

Source of the algebra: `parallel.spectral`; the portable way that judges this one: `parallel.boundary`.

Shapes: M matrices; R and S their replicated and split sides, one after the other; O and I out- and in-features; P
programs of a launch. Tables are int64.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import triton.language as tl
from torch import Tensor

from parallel.kernels import programs
from parallel.matrices import MatrixStack, Segments

ROWS, COLUMNS = 32, 128
"""The tile that a program of a product or of the pull-back moves over its matrix."""
FLAT = 4096
"""Elements of a program that needs no rows: those of a matrix follow each other in memory."""
FIELDS = 5
"""Columns of a table of shapes."""
TRITON = {
    torch.float64: tl.float64,
    torch.float32: tl.float32,
    torch.bfloat16: tl.bfloat16,
    torch.float16: tl.float16,
}


@dataclass(frozen=True)
class Tables:
    """Of one launch: which block of which matrix a program has (P, 2); shapes and offsets of matrices (M, FIELDS)."""

    tasks: Tensor
    shapes: Tensor
    blocks: list[int]

    @property
    def grid(self) -> tuple[int]:
        return (self.tasks.shape[0],)


class TritonBoundary:
    """`parallel.boundary.Boundary` for the matrices of a GPU."""

    def __init__(self, stack: MatrixStack) -> None:
        self.stack = stack
        self._element = TRITON[stack.sigma_M.dtype]
        self._sizes = [tuple(weight.shape) for weight in stack.weights()]
        r, s = _starts(stack.replicated.lengths), _starts(stack.split.lengths)
        rows_shared = stack.sharing_rows
        # W r has a number per row of W where ranks share its rows, a number per column elsewhere; Wᵀ w the reverse.
        self._first = self._products(rows_shared, r, s)
        self._second = self._products([not shared for shared in rows_shared], s, r)
        after_r = [start + stack.replicated_R.numel() for start in s]  # `pull_back` puts both sides in one tensor
        of_rows = [there if shared else here for shared, here, there in zip(rows_shared, r, after_r, strict=True)]
        of_columns = [here if shared else there for shared, here, there in zip(rows_shared, r, after_r, strict=True)]
        zeros = [0] * len(self._sizes)
        self._by_rows = self._tables([_blocks(height, ROWS) for height, _ in self._sizes], zeros, of_rows, of_columns)
        self._flat = self._tables([_blocks(h * w, FLAT) for h, w in self._sizes], zeros, zeros, zeros)
        self._partial = Segments(self._flat.blocks, self._device)
        self._addresses: dict[str, tuple[list[int], Tensor]] = {}

    def split_products(self) -> Tensor:
        w_S = torch.empty_like(self.stack.split_S)
        self._multiply(self._first, self.stack.replicated_R, w_S)
        return w_S

    def replicated_products(self, w_S: Tensor, out_R: Tensor) -> None:
        self._multiply(self._second, w_S, out_R)

    def inner_products(self) -> Tensor:
        launch = self._flat
        partial_P = self.stack.sigma_M.new_empty(launch.grid)
        programs.inner[launch.grid](
            launch.tasks, launch.shapes, self._weights(), self._grads(), partial_P, self._element, FIELDS, FLAT
        )
        return self._partial.sums(partial_P)

    def pull_back(self, scale_M: Tensor, ratio_M: Tensor) -> None:
        launch = self._by_rows
        vectors = torch.cat([self.stack.replicated_R, self.stack.split_S])
        programs.pull[launch.grid](
            launch.tasks,
            launch.shapes,
            self._grads(),
            vectors,
            scale_M,
            ratio_M,
            self._element,
            FIELDS,
            ROWS,
            COLUMNS,
        )

    def write_effective(self, scale_M: Tensor) -> None:
        launch = self._flat
        effectives = self.stack.effectives()
        programs.write[launch.grid](
            launch.tasks,
            launch.shapes,
            self._weights(),
            self._table_of("effective", effectives),
            scale_M,
            self._element,
            TRITON[effectives[0].dtype],
            FIELDS,
            FLAT,
        )

    def _multiply(self, launch: Tables, x: Tensor, y: Tensor) -> None:
        programs.multiply[launch.grid](
            launch.tasks, launch.shapes, self._weights(), x, y, self._element, FIELDS, ROWS, COLUMNS
        )

    def _weights(self) -> Tensor:
        return self._table_of("weight", self.stack.weights())

    def _grads(self) -> Tensor:
        return self._table_of("grad", self.stack.grads())

    def _table_of(self, name: str, tensors: Sequence[Tensor]) -> Tensor:
        """(M,): where the matrices begin. Sent to the device, without waiting for it, only when one of them moved."""
        assert all(tensor.is_contiguous() for tensor in tensors), f"{name}: the kernels read whole rows"
        addresses = [tensor.data_ptr() for tensor in tensors]
        known, table = self._addresses.get(name, (None, None))
        if known != addresses or table is None:
            table = self._upload(addresses)
            self._addresses[name] = (addresses, table)
        return table

    @property
    def _device(self) -> torch.device:
        return self.stack.sigma_M.device

    def _products(self, by_rows: list[bool], x: list[int], y: list[int]) -> Tables:
        sizes = zip(by_rows, self._sizes, strict=True)
        blocks = [_blocks(height, ROWS) if rows else _blocks(width, COLUMNS) for rows, (height, width) in sizes]
        return self._tables(blocks, [int(rows) for rows in by_rows], x, y)

    def _tables(self, blocks: list[int], *named: list[int]) -> Tables:
        """`blocks` of each matrix, and three numbers of each that the kernel names."""
        tasks = [(index, block) for index, count in enumerate(blocks) for block in range(count)]
        shapes = [(*size, *numbers) for size, *numbers in zip(self._sizes, *named, strict=True)]
        return Tables(self._upload(tasks), self._upload(shapes), blocks)

    def _upload(self, values: Sequence[int] | Sequence[tuple[int, ...]]) -> Tensor:
        host = torch.tensor(values, dtype=torch.int64, pin_memory=self._device.type == "cuda")
        return host.to(self._device, non_blocking=True)


def _blocks(length: int, block: int) -> int:
    """How many blocks cover a length."""
    return -(-length // block)


def _starts(lengths: Sequence[int]) -> list[int]:
    """Where each of several vectors begins in the flat tensor of all."""
    starts = [0]
    for length in lengths[:-1]:
        starts.append(starts[-1] + length)
    return starts
