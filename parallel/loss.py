"""Cross-entropy, and z-loss, over a vocabulary that tensor-parallel ranks share.

Logits are kept once, in the compute dtype: softmax and gradient are made in wide precision a few rows at a time.

Shapes: B batch, T sequence, N = B T tokens, n the tokens of one chunk, V this rank's share of the padded vocabulary,
v its live entries: those before the padding.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd.function import once_differentiable

from parallel.topology import TensorParallel

CHUNK = 2**18
"""Logits in wide precision at a time on a CPU: what a core's cache holds."""
CHUNK_ON_DEVICE = 2**26
"""On a GPU, 256 MB: starting a kernel is nothing beside it."""


Chunks = Iterator[tuple[slice, Tensor]]


def chunks_of(logits_NV: Tensor, live: int, wide: torch.dtype) -> Chunks:
    """The rows of each chunk, and room for their live entries in wide precision: the same for all chunks."""
    on_cpu = logits_NV.untyped_storage().device.type == "cpu"  # not so of a dry run's tensors, which have no memory
    numbers = CHUNK if on_cpu else CHUNK_ON_DEVICE
    tokens, size = len(logits_NV), max(1, numbers // logits_NV.shape[-1])
    room_nv = logits_NV.new_empty(min(size, tokens), live, dtype=wide)
    for first in range(0, tokens, size):
        last = min(first + size, tokens)
        yield slice(first, last), room_nv[: last - first]


@dataclass(frozen=True)
class VocabParallelLoss:
    """Mean next-token cross-entropy in nats, computed in fp32 (float64 logits in float64): (B, T, V), (B, T) -> ().

    `vocab_size` counts live tokens: the padding after them takes no probability and gets no gradient. With
    `label_smoothing` the target has 1 - that, and every live token an equal share of that on top (Szegedy et al. 2016,
    section 7). `z_loss` adds that many times the mean of log² Z, Z the softmax's denominator (Chowdhery et al. 2022,
    section 5).

    The backward pass leaves the gradient where the logits were: who else needs them reads them before.
    """

    vocab_size: int
    tp: TensorParallel
    label_smoothing: float = 0.0
    z_loss: float = 0.0
    chunks: Callable[[Tensor, int, torch.dtype], Chunks] = field(default=chunks_of, repr=False)
    """How rows are cut: a plan counts one chunk for all that are equal."""

    def __call__(self, logits_BTV: Tensor, targets_BT: Tensor) -> Tensor:
        return _CrossEntropy.apply(logits_BTV.flatten(0, 1), targets_BT.flatten(), self)

    def live(self, rows: int) -> int:
        """How many of this rank's `rows` vocabulary entries are tokens."""
        return max(0, min(rows, self.vocab_size - self.tp.rank * rows))


class _CrossEntropy(torch.autograd.Function):
    """Keeps the logits as they are and, of each token, their maximum m and the sum of exp(x - m): Z without exp(m)."""

    @staticmethod
    def forward(ctx: Any, logits_NV: Tensor, targets_N: Tensor, loss: VocabParallelLoss) -> Tensor:
        # Centred on the rank's own maxima, then on those of all: a logit far from zero costs no digits of the loss.
        max_N, sums_3N = _sums(logits_NV, targets_N, loss)
        if loss.tp.size > 1:
            own_max_N = max_N.clone()
            with loss.tp.clock.part("communication"):
                dist.all_reduce(max_N, dist.ReduceOp.MAX, group=loss.tp.group)
            _recentre(sums_3N, own_max_N - max_N, targets_N, loss, logits_NV.shape[-1])
            with loss.tp.clock.part("communication"):
                dist.all_reduce(sums_3N, group=loss.tp.group)
        z_N, target_N, total_N = sums_3N
        loss_N = z_N.log() - (1 - loss.label_smoothing) * target_N
        if loss.label_smoothing:
            loss_N -= loss.label_smoothing / loss.vocab_size * total_N
        if loss.z_loss:
            loss_N += loss.z_loss * (max_N + z_N.log()).square()
        ctx.loss = loss
        ctx.save_for_backward(logits_NV, targets_N, max_N, z_N)
        return loss_N.mean()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        loss: VocabParallelLoss = ctx.loss
        logits_NV, targets_N, max_N, z_N = ctx.saved_tensors
        live = loss.live(logits_NV.shape[-1])
        each = grad / targets_N.numel()
        weight_N = each * (1 + 2 * loss.z_loss * (max_N + z_N.log())) / z_N
        local_N, here_N = _local(targets_N, loss, logits_NV.shape[-1])
        on_target_N = here_N * (each * (loss.label_smoothing - 1))
        for rows, grad_nv in loss.chunks(logits_NV, live, max_N.dtype):
            logits_nv = logits_NV[rows, :live]
            torch.sub(logits_nv, max_N[rows, None], out=grad_nv).exp_().mul_(weight_N[rows, None])
            if loss.label_smoothing:
                grad_nv.sub_(each * (loss.label_smoothing / loss.vocab_size))
            if live:
                grad_nv.scatter_add_(1, local_N[rows, None], on_target_N[rows, None])
            logits_nv.copy_(grad_nv)
        logits_NV[:, live:] = 0
        return logits_NV, None, None


def _sums(logits_NV: Tensor, targets_N: Tensor, loss: VocabParallelLoss) -> tuple[Tensor, Tensor]:
    """Of this rank's live entries, in wide precision: each row's maximum m, and (sum of exp(x - m), target's x - m,
    sum of x - m). A target that another rank has counts 0; the last is made only for label smoothing.
    """
    live = loss.live(logits_NV.shape[-1])
    wide = torch.float64 if logits_NV.dtype == torch.float64 else torch.float32
    # Without live entries the least number stands for the maximum: -inf would make 0 x inf of what is not there.
    max_N = logits_NV.new_full(targets_N.shape, torch.finfo(wide).min, dtype=wide)
    sums_3N = logits_NV.new_zeros(3, *targets_N.shape, dtype=wide)
    if not live:
        return max_N, sums_3N
    local_N, here_N = _local(targets_N, loss, logits_NV.shape[-1])
    for rows, centred_nv in loss.chunks(logits_NV, live, wide):
        logits_nv = logits_NV[rows, :live]
        max_N[rows] = logits_nv.amax(-1)
        torch.sub(logits_nv, max_N[rows, None], out=centred_nv)
        sums_3N[1, rows] = centred_nv.gather(1, local_N[rows, None])[:, 0] * here_N[rows]
        if loss.label_smoothing:
            sums_3N[2, rows] = centred_nv.sum(-1)
        sums_3N[0, rows] = centred_nv.exp_().sum(-1)
    return max_N, sums_3N


def _recentre(sums_3N: Tensor, shift_N: Tensor, targets_N: Tensor, loss: VocabParallelLoss, rows: int) -> None:
    """Sums of x - m become sums of x - m + shift."""
    sums_3N[0] *= shift_N.exp()
    sums_3N[1] += shift_N * _local(targets_N, loss, rows)[1]
    sums_3N[2] += shift_N * loss.live(rows)


def _local(targets_N: Tensor, loss: VocabParallelLoss, rows: int) -> tuple[Tensor, Tensor]:
    """Each target's index among this rank's `rows` entries (0 where another rank has it), and whether it is here."""
    local_N = targets_N - loss.tp.rank * rows
    here_N = (local_N >= 0) & (local_N < rows)
    return local_N.where(here_N, 0), here_N
