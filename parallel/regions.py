"""Moves of activations into and out of tensor-parallel layers, and their transposes in the backward pass.

megatron-core's mapping does the all-reduce of outputs. Its sequence-parallel mappings allocate on
`torch.cuda.current_device` and so do not run on CPUs, and the collectives of its backward passes cannot be timed: these
are ours. Every function is the identity at tp = 1.

Shapes: B batch, T sequence, t = T / tp, D features.
"""

from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from parallel.topology import TensorParallel


def enter(x: Tensor, tp: TensorParallel) -> Tensor:
    """Input of a column-parallel layer: every rank gets all tokens; backward sums dX over ranks.

    x is (B, t, D) under sequence parallelism, (B, T, D) otherwise; the result is (B, T, D).
    """
    return x if tp.size == 1 else _Enter.apply(x, tp)


def leave(x: Tensor, tp: TensorParallel) -> Tensor:
    """Output of a row-parallel layer: partial sums (B, T, D) become the sum, (B, T, D), or this rank's (B, t, D)."""
    if tp.size == 1:
        return x
    if tp.sequence_parallel:
        return _ReduceScatterSequence.apply(x, tp)
    from megatron.core.tensor_parallel import mappings

    # megatron reduces `input_.contiguous()` and returns `input_`: a non-contiguous input would stay unreduced. And
    # selective recomputation relies on the sum being where the product was (`parallel.recompute.KEPT`).
    assert x.is_contiguous(), "a linear layer's output is"
    with tp.clock.part("communication"):
        return mappings.reduce_from_tensor_model_parallel_region(x, group=tp.group)


def gather_features(x: Tensor, tp: TensorParallel) -> Tensor:
    """Each rank's share (..., f) of the features becomes all of them, (..., f tp), on every rank.

    Backward adds up what the ranks say of every feature and leaves each rank its share.
    """
    return x if tp.size == 1 else _GatherFeatures.apply(x, tp)


def start_sum(x: Tensor, tp: TensorParallel) -> Callable[[], Tensor]:
    """Begin to add up the terms (B, T, D) of all ranks; what is returned waits for the end.

    It gives the sum, (B, T, D), or under sequence parallelism this rank's (B, t, D) of it.
    """
    # As a value, not written into a buffer: selective recomputation keeps it and does not communicate again.
    ops, group = torch.ops._c10d_functional, tp.group.group_name  # type: ignore[union-attr]
    with tp.clock.part("communication"):
        if tp.sequence_parallel:
            parts = x.unflatten(1, (tp.size, -1)).transpose(0, 1).flatten(0, 1).contiguous()
            started = ops.reduce_scatter_tensor(parts, "sum", tp.size, group)
        else:
            started = ops.all_reduce(x.contiguous(), "sum", group)

    def wait() -> Tensor:
        with tp.clock.part("communication"):
            return ops.wait_tensor(started)

    return wait


def gather_sequence(x: Tensor, tp: TensorParallel) -> Tensor:
    """(B, t, D) of every rank -> (B, T, D) under sequence parallelism; else x. No autograd: the transpose is a sum."""
    if not tp.sequence_parallel:
        return x.view_as(x)
    with tp.clock.part("communication"):
        parts = x.new_empty(tp.size * x.shape[0], *x.shape[1:])
        dist.all_gather_into_tensor(parts, x.contiguous(), group=tp.group)
        return parts.unflatten(0, (tp.size, -1)).transpose(0, 1).flatten(1, 2)


class _Enter(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, tp: TensorParallel) -> Tensor:
        ctx.tp = tp
        return gather_sequence(x, tp)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return start_sum(grad, ctx.tp)(), None


class _ReduceScatterSequence(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, tp: TensorParallel) -> Tensor:
        ctx.tp = tp
        return start_sum(x, tp)()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return gather_sequence(grad, ctx.tp), None


class _GatherFeatures(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, tp: TensorParallel) -> Tensor:
        ctx.tp = tp
        with tp.clock.part("communication"):
            parts = x.new_empty(tp.size * x.shape[0], *x.shape[1:])
            dist.all_gather_into_tensor(parts, x.contiguous(), group=tp.group)
            return parts.unflatten(0, (tp.size, -1)).movedim(0, -2).flatten(-2)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        tp = ctx.tp
        with tp.clock.part("communication"):
            parts = grad.unflatten(-1, (tp.size, -1)).movedim(-2, 0).flatten(0, 1).contiguous()
            share = parts.new_empty(parts.shape[0] // tp.size, *parts.shape[1:])
            dist.reduce_scatter_tensor(share, parts, group=tp.group)
            return share, None
