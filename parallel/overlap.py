"""The product of a column-parallel layer, whose backward pass adds up dX over ranks while it computes dW.

Shapes: B batch, T sequence, t = T / tp under sequence parallelism and T without, N = B T tokens, I in-features, O_r
this rank's out-features.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from parallel.regions import gather_sequence, start_sum
from parallel.topology import TensorParallel


class OverlappedProduct(torch.autograd.Function):
    """y = x W_hatᵀ + b, (B, t, I) -> (B, T, O_r): `enter`, the straight-through weight and the product in one.

    The gradients are those of the separate functions, in fp32 to the bit. dX and dW come together: a schedule that asks
    for them apart would have everything computed twice. Source: Shoeybi et al. 2019, section 3; Narayanan et al. 2021.
    """

    @staticmethod
    def forward(
        ctx: Any, x_BtI: Tensor, weight_OI: Tensor, effective_OI: Tensor, bias_O: Tensor | None, tp: TensorParallel
    ) -> Tensor:
        """`effective_OI` is W_hat in x's dtype; its gradient goes to `weight_OI`, in that one's dtype."""
        x_BTI = gather_sequence(x_BtI, tp)
        ctx.tp, ctx.master_dtype = tp, weight_OI.dtype
        ctx.save_for_backward(x_BTI, effective_OI)
        return F.linear(x_BTI, effective_OI, bias_O)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_BTO: Tensor) -> tuple[Tensor | None, ...]:
        x_BTI, effective_OI = ctx.saved_tensors
        grad_NO = grad_BTO.flatten(0, 1)
        needs_x, needs_weight, _, needs_bias, _ = ctx.needs_input_grad
        wait = start_sum((grad_NO @ effective_OI).view_as(x_BTI), ctx.tp) if needs_x else None
        weight_grad = _product(grad_NO.T, x_BTI.flatten(0, 1), ctx.master_dtype) if needs_weight else None
        bias_grad = grad_NO.sum(0) if needs_bias else None
        return wait() if wait else None, weight_grad, None, bias_grad, None


def _product(a: Tensor, b: Tensor, dtype: torch.dtype) -> Tensor:
    """Their product in `dtype`: of bf16 factors without a rounding to bf16 before fp32, where a kernel does that.

    ROCm's products give the type of their factors only.
    """
    if a.is_cuda and torch.version.hip is None and (a.dtype, dtype) == (torch.bfloat16, torch.float32):
        return torch.mm(a, b, out_dtype=dtype)
    return torch.mm(a, b).to(dtype)
