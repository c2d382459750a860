"""Moves of activations into and out of tensor-parallel layers, and their transposes in the backward pass.

megatron-core's mappings do the all-reduces; its sequence-parallel mappings allocate on `torch.cuda.current_device`
and so do not run on CPUs: those two are ours. Every function is the identity at tp = 1.

Shapes: B batch, T sequence, t = T / tp, D features.
"""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from parallel.topology import TensorParallel


def enter(x: Tensor, tp: TensorParallel) -> Tensor:
    """Input of a column-parallel layer: every rank gets all tokens; backward sums dX over ranks.

    x is (B, t, D) under sequence parallelism, (B, T, D) otherwise; the result is (B, T, D).
    """
    if tp.size == 1:
        return x
    if tp.sequence_parallel:
        return _GatherSequence.apply(x, tp.group)
    from megatron.core.tensor_parallel import mappings

    # Its backward has the trap that `leave` avoids (see there); dX of a linear layer is always contiguous.
    return mappings.copy_to_tensor_model_parallel_region(x, group=tp.group)


def leave(x: Tensor, tp: TensorParallel) -> Tensor:
    """Output of a row-parallel layer: partial sums (B, T, D) become the sum, (B, T, D), or this rank's (B, t, D)."""
    if tp.size == 1:
        return x
    if tp.sequence_parallel:
        return _ReduceScatterSequence.apply(x, tp.group)
    from megatron.core.tensor_parallel import mappings

    # megatron reduces `input_.contiguous()` and returns `input_`: a non-contiguous input would stay unreduced. And
    # selective recomputation relies on the sum being where the product was (`parallel.recompute.KEPT`).
    assert x.is_contiguous(), "a linear layer's output is"
    return mappings.reduce_from_tensor_model_parallel_region(x, group=tp.group)


def gather_features(x: Tensor, tp: TensorParallel) -> Tensor:
    """Each rank's share (..., f) of the features becomes all of them, (..., f tp), on every rank.

    Backward adds up what the ranks say of every feature and leaves each rank its share.
    """
    return x if tp.size == 1 else _GatherFeatures.apply(x, tp.group)


def _all_gather(x: Tensor, group: dist.ProcessGroup) -> Tensor:
    """(B, t, D) of every rank -> (B, T, D)."""
    size = group.size()
    parts = x.new_empty(size * x.shape[0], *x.shape[1:])
    dist.all_gather_into_tensor(parts, x.contiguous(), group=group)
    return parts.unflatten(0, (size, -1)).transpose(0, 1).flatten(1, 2)


def _reduce_scatter(x: Tensor, group: dist.ProcessGroup) -> Tensor:
    """Partial (B, T, D) of every rank -> this rank's share (B, t, D) of the sum."""
    size = group.size()
    parts = x.unflatten(1, (size, -1)).transpose(0, 1).flatten(0, 1)
    # Given as a value, not written into a buffer: selective recomputation keeps it and does not communicate again.
    share = torch.ops._c10d_functional.reduce_scatter_tensor(parts.contiguous(), "sum", size, group.group_name)
    return torch.ops._c10d_functional.wait_tensor(share)


class _GatherSequence(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, group: dist.ProcessGroup) -> Tensor:
        ctx.group = group
        return _all_gather(x, group)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return _reduce_scatter(grad, ctx.group), None


class _ReduceScatterSequence(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, group: dist.ProcessGroup) -> Tensor:
        ctx.group = group
        return _reduce_scatter(x, group)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return _all_gather(grad, ctx.group), None


class _GatherFeatures(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, group: dist.ProcessGroup) -> Tensor:
        ctx.group = group
        size = group.size()
        parts = x.new_empty(size * x.shape[0], *x.shape[1:])
        dist.all_gather_into_tensor(parts, x.contiguous(), group=group)
        return parts.unflatten(0, (size, -1)).movedim(0, -2).flatten(-2)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        size = ctx.group.size()
        parts = grad.unflatten(-1, (size, -1)).movedim(-2, 0).flatten(0, 1).contiguous()
        share = parts.new_empty(parts.shape[0] // size, *parts.shape[1:])
        dist.reduce_scatter_tensor(share, parts, group=ctx.group)
        return share, None
