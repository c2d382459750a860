"""What the step boundary does with whole matrices: everything that reads or writes as many numbers as W has.

These are bound by memory: each operation goes once over each tensor that it names, and makes no temporary of its size.
The portable way, on any device; `parallel.kernels.boundary` is the same for GPUs, a launch for all matrices.

Shapes: M matrices; R and S their replicated and split sides, one after the other; I and O in- and out-features.
"""

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from parallel.matrices import MatrixStack

CAST_BLOCK = 1 << 16
"""Numbers cast at a time on a CPU, where torch would make a temporary of all that are."""


class Boundary(Protocol):
    """The four moves, over all matrices of one stack."""

    def split_products(self, stack: MatrixStack) -> Tensor:
        """This rank's part of the split sides, w = W r of every matrix, (S,)."""
        ...

    def replicated_products(self, stack: MatrixStack, w_S: Tensor, out_R: Tensor) -> None:
        """This rank's term of the replicated sides, t = Wᵀ w of every matrix."""
        ...

    def inner_products(self, stack: MatrixStack) -> Tensor:
        """This rank's term of c = <dL/dW_hat, W> of every matrix, (M,)."""
        ...

    def pull_back(self, stack: MatrixStack, scale_M: Tensor, ratio_M: Tensor) -> None:
        """Every gradient G becomes scale (G - ratio s rᵀ), in place; s, r the vectors that the stack holds."""
        ...

    def write_effective(self, stack: MatrixStack, scale_M: Tensor) -> None:
        """W_hat = scale W of every matrix, in the compute dtype."""
        ...


class PortableBoundary:
    """With torch's operations: one matrix-vector product, dot product or fused update per matrix."""

    def split_products(self, stack: MatrixStack) -> Tensor:
        w_S = torch.empty_like(stack.split_S)
        for matrix, r, w in zip(stack.matrices, _replicated(stack), stack.split.views(w_S), strict=True):
            torch.mv(matrix.oriented(matrix.layer.weight), r, out=w)
        return w_S

    def replicated_products(self, stack: MatrixStack, w_S: Tensor, out_R: Tensor) -> None:
        parts = zip(stack.matrices, stack.split.views(w_S), stack.replicated.views(out_R), strict=True)
        for matrix, w, t in parts:
            torch.mv(matrix.oriented(matrix.layer.weight).T, w, out=t)

    def inner_products(self, stack: MatrixStack) -> Tensor:
        c_M = torch.empty_like(stack.sigma_M)
        for matrix, c in zip(stack.matrices, c_M.unbind(), strict=True):
            torch.dot(matrix.grad_OI.flatten(), matrix.weight_OI.flatten(), out=c)
        return c_M

    def pull_back(self, stack: MatrixStack, scale_M: Tensor, ratio_M: Tensor) -> None:
        # One pass over each gradient needs its two factors as numbers of the host: on a GPU this waits for it.
        factors = zip(scale_M.tolist(), (scale_M * ratio_M).tolist(), strict=True)
        vectors = zip(stack.split.views(stack.split_S), _replicated(stack), strict=True)
        for matrix, (scale, times), (s, r) in zip(stack.matrices, factors, vectors, strict=True):
            grad_OI = matrix.grad_OI
            rows, columns = (s, r) if matrix.layer.split_dim == 0 else (r, s)
            torch.addr(grad_OI, rows, columns, beta=scale, alpha=-times, out=grad_OI)

    def write_effective(self, stack: MatrixStack, scale_M: Tensor) -> None:
        for matrix, scale in zip(stack.matrices, scale_M.unbind(), strict=True):
            scale_into(matrix.effective_OI, matrix.weight_OI, scale)


def scale_into(out: Tensor, weight: Tensor, scale: Tensor) -> None:
    """Write scale * weight, rounded to `out`'s dtype at the end. Shapes: (O, I) both, scale ()."""
    rows = weight.shape[0]
    if out.dtype != weight.dtype and not weight.is_cuda:
        rows = max(1, CAST_BLOCK // weight.shape[1])
    for here, there in zip(out.split(rows), weight.split(rows), strict=True):
        torch.mul(there, scale, out=here)


def _replicated(stack: MatrixStack) -> Sequence[Tensor]:
    return stack.replicated.views(stack.replicated_R)
