"""Gradients of parameters that tensor-parallel ranks hold whole but see only in part."""

from collections.abc import Iterable

import torch
import torch.distributed as dist
from torch import nn

from parallel.topology import TensorParallel


@torch.no_grad()
def sum_partial_gradients(parameters: Iterable[nn.Parameter], tp: TensorParallel) -> None:
    """Add up, over tensor-parallel ranks, the gradients of parameters marked `tp_partial`: one all-reduce.

    These are norms of queries and keys (each rank sees its heads) and, under sequence parallelism, norms, scales of
    residual branches, positions and row-parallel biases (each rank sees its tokens). Left alone they drift apart
    silently and look like instability.
    """
    grads = [p.grad for p in parameters if getattr(p, "tp_partial", False) and p.grad is not None]
    if not grads:
        return
    buffer = torch.cat([grad.flatten() for grad in grads])
    with tp.clock.part("communication"):
        dist.all_reduce(buffer, group=tp.group)
    for grad, total in zip(grads, buffer.split([grad.numel() for grad in grads]), strict=True):
        grad.copy_(total.view_as(grad))
