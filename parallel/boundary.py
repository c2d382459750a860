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
        # Made once: each view costs as much as an operation on a small matrix.
        self._replicated = stack.replicated.views(stack.replicated_R)
        self._split = stack.split.views(stack.split_S)

    def split_products(self) -> Tensor:
        w_S = torch.empty_like(self.stack.split_S)
        parts = zip(self.stack.sharing_rows, self.stack.weights(), self._replicated, strict=True)
        for (rows, weight_OI, r), w in zip(parts, self.stack.split.views(w_S), strict=True):
            torch.mv(weight_OI if rows else weight_OI.T, r, out=w)
        return w_S

    def replicated_products(self, w_S: Tensor, out_R: Tensor) -> None:
        parts = zip(self.stack.sharing_rows, self.stack.weights(), self.stack.split.views(w_S), strict=True)
        for (rows, weight_OI, w), t in zip(parts, self.stack.replicated.views(out_R), strict=True):
            torch.mv(weight_OI.T if rows else weight_OI, w, out=t)

    def inner_products(self) -> Tensor:
        c_M = torch.empty_like(self.stack.sigma_M)
        for grad_OI, weight_OI, c in zip(self.stack.grads(), self.stack.weights(), c_M.unbind(), strict=True):
            torch.dot(grad_OI.flatten(), weight_OI.flatten(), out=c)
        return c_M

    def pull_back(self, scale_M: Tensor, ratio_M: Tensor) -> None:
        # One pass over each gradient needs its two factors as numbers of the host: on a GPU this waits for it.
        factors = zip(scale_M.tolist(), (scale_M * ratio_M).tolist(), strict=True)
        sides = zip(self.stack.sharing_rows, self._split, self._replicated, strict=True)
        for grad_OI, (scale, times), (rows, s, r) in zip(self.stack.grads(), factors, sides, strict=True):
            torch.addr(grad_OI, s if rows else r, r if rows else s, beta=scale, alpha=-times, out=grad_OI)

    def write_effective(self, scale_M: Tensor) -> None:
        parts = zip(self.stack.effectives(), self.stack.weights(), scale_M.unbind(), strict=True)
        for effective_OI, weight_OI, scale in parts:
            scale_into(effective_OI, weight_OI, scale)


def scale_into(out: Tensor, weight: Tensor, scale: Tensor) -> None:
    """Write scale * weight, rounded to `out`'s dtype at the end. Shapes: (O, I) both, scale ()."""
    if out.dtype == weight.dtype or weight.is_cuda:
        torch.mul(weight, scale, out=out)
        return
    rows = max(1, CAST_BLOCK // weight.shape[1])
    for here, there in zip(out.split(rows), weight.split(rows), strict=True):
        torch.mul(there, scale, out=here)
