"""What the step boundary does with whole matrices: everything that reads or writes as many numbers as W has.

These are bound by memory: each operation goes once over each tensor that it names, and makes no temporary of its size.
The portable way, on any device; `parallel.kernels.boundary` is the same for GPUs, a launch for all matrices.

Shapes: M matrices; R and S their replicated and split sides, one after the other; I and O in- and out-features.
"""

from typing import Protocol

import torch
from torch import Tensor

from parallel.kernels.choice import runs_triton
from parallel.matrices import MatrixStack

CAST_BLOCK = 1 << 16
"""Numbers cast at a time on a CPU, where torch would make a temporary of all that are."""


class Boundary(Protocol):
    """The moves over all matrices of one stack."""

    stack: MatrixStack

    def split_products(self) -> Tensor:
        """This rank's part of the split sides, w = W r of every matrix, (S,)."""
        ...

    def replicated_products(self, w_S: Tensor, out_R: Tensor) -> None:
        """This rank's term of the replicated sides, t = Wᵀ w of every matrix, into `out_R`."""
        ...

    def inner_products(self) -> Tensor:
        """This rank's term of c = <dL/dW_hat, W> of every matrix, (M,)."""
        ...

    def pull_back(self, scale_M: Tensor, ratio_M: Tensor) -> None:
        """Every gradient G becomes scale (G - ratio s rᵀ), in place; s, r the vectors that the stack holds."""
        ...

    def write_effective(self, scale_M: Tensor) -> None:
        """W_hat = scale W of every matrix, in the compute dtype."""
        ...


def boundary_of(stack: MatrixStack) -> Boundary:
    """Triton's kernels for matrices on a GPU, if triton is there; torch's operations otherwise."""
    if runs_triton(stack.sigma_M.device):
        from parallel.kernels.boundary import TritonBoundary

        return TritonBoundary(stack)
    return PortableBoundary(stack)


class PortableBoundary:
    """With torch's operations: a matrix-vector product, dot product or fused update for each matrix."""

    def __init__(self, stack: MatrixStack) -> None:
        self.stack = stack

    def split_products(self) -> Tensor:
        w_S = torch.empty_like(self.stack.split_S)
        for matrix, w in zip(self.stack.matrices, self.stack.split.views(w_S), strict=True):
            torch.mv(matrix.oriented(matrix.layer.weight.detach()), matrix.replicated_r, out=w)
        return w_S

    def replicated_products(self, w_S: Tensor, out_R: Tensor) -> None:
        vectors = zip(self.stack.split.views(w_S), self.stack.replicated.views(out_R), strict=True)
        for matrix, (w, t) in zip(self.stack.matrices, vectors, strict=True):
            torch.mv(matrix.oriented(matrix.layer.weight.detach()).T, w, out=t)

    def inner_products(self) -> Tensor:
        c_M = torch.empty_like(self.stack.sigma_M)
        for matrix, c in zip(self.stack.matrices, c_M.unbind(), strict=True):
            torch.dot(matrix.grad_OI.flatten(), matrix.weight_OI.flatten(), out=c)
        return c_M

    def pull_back(self, scale_M: Tensor, ratio_M: Tensor) -> None:
        # One pass over each gradient needs its two factors as numbers of the host: on a GPU this waits for it.
        factors = zip(scale_M.tolist(), (scale_M * ratio_M).tolist(), strict=True)
        for matrix, (scale, times) in zip(self.stack.matrices, factors, strict=True):
            grad_OI, s, r = matrix.grad_OI, matrix.split_s, matrix.replicated_r
            rows, columns = (s, r) if matrix.layer.split_dim == 0 else (r, s)
            torch.addr(grad_OI, rows, columns, beta=scale, alpha=-times, out=grad_OI)

    def write_effective(self, scale_M: Tensor) -> None:
        for matrix, scale in zip(self.stack.matrices, scale_M.unbind(), strict=True):
            scale_into(matrix.effective_OI, matrix.weight_OI, scale)


def scale_into(out: Tensor, weight: Tensor, scale: Tensor) -> None:
    """Write scale * weight, rounded to `out`'s dtype at the end. Shapes: (O, I) both, scale ()."""
    rows = weight.shape[0]
    if out.dtype != weight.dtype and not weight.is_cuda:
        rows = max(1, CAST_BLOCK // weight.shape[1])
    for here, there in zip(out.split(rows), weight.split(rows), strict=True):
        torch.mul(there, scale, out=here)
