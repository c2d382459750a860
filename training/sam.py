"""Sharpness-aware minimisation: the gradient that updates w is taken at w + e, the worst point near w to first order.

e = rho g / (|g| + 1e-12), g the gradient at w of all parameters together.
Sources: Foret et al. 2021, eq. 2; Ilbert et al. 2024 (SAMformer).
"""

from collections.abc import Iterable, Iterator, Sequence

import torch
import torch.distributed as dist
from torch import Tensor, nn

from parallel.engine import REDUCE_BUCKET
from parallel.gradients import sum_partial_gradients
from parallel.spectral import SpectralReparam
from parallel.topology import Topology
from training.build import Trainer
from training.reductions import rise_term


class Sam:
    """Moves the weights of one rank to w + e and back to the bit.

    With any model and optimizer, once per step:

        loss(w).backward()
        sam.ascend()  # the weights are w + e; gradients are None
        loss(w + e).backward()  # the same batch, the same dropout
        sam.restore()  # the weights are w; `parameter.grad` keeps the gradients at w + e
        optimizer.step()

    With `spectral`, gradients are to be pulled back before `ascend` and before `restore`: W and gamma are moved, and
    sigma and W_hat follow with u and v held, as autograd through the in-forward formula sees them. With `topology`,
    gradients are first averaged over data-parallel ranks, and |g| is that of the whole model, replicated parameters
    counted once; `ascend` is then collective. Costs a copy of the weights and one more forward and backward pass.
    """

    def __init__(
        self,
        parameters: Iterable[nn.Parameter],
        rho: float,
        spectral: SpectralReparam | None = None,
        topology: Topology | None = None,
    ) -> None:
        """`rho` is |e|. Without `topology` this process holds the whole model and sees the whole batch."""
        self._parameters = list(parameters)
        self._rho = rho
        self._spectral = spectral
        self._topology = topology
        self._kept: list[Tensor] = []

    @torch.no_grad()
    def ascend(self) -> None:
        """Put w + e in place of w, and take the gradients away. A parameter without a gradient stays where it is."""
        assert not self._kept, "ascend and restore take turns"
        moved = [p for p in self._parameters if p.grad is not None]
        gradients = [p.grad for p in moved if p.grad is not None]
        self._average(gradients)
        squares = _squares([g for p, g in zip(moved, gradients, strict=True) if getattr(p, "model_parallel", True)])
        step = self._rho / (self._total(squares.to(self._parameters[0].device)).sqrt() + 1e-12)
        self._kept = [tensor.detach().clone() for tensor in self._state()]
        for parameter, gradient in zip(moved, gradients, strict=True):
            parameter.addcmul_(gradient, step.to(gradient.dtype))
            parameter.grad = None
        if self._spectral is not None:
            self._spectral.follow()

    @torch.no_grad()
    def restore(self) -> None:
        """Put w, sigma and W_hat back as they were before `ascend`, to the bit; gradients stay."""
        for tensor, kept in zip(self._state(), self._kept, strict=True):
            tensor.copy_(kept)
        self._kept = []
        if self._spectral is not None:
            self._spectral.restore()

    def _state(self) -> list[Tensor]:
        """What `ascend` changes, W_hat left out: it is written anew from the rest."""
        return [*self._parameters, *(self._spectral.sigmas() if self._spectral is not None else ())]

    def _average(self, gradients: Sequence[Tensor]) -> None:
        """The mean over data-parallel ranks, in buckets as large as the engine's."""
        if self._topology is None or self._topology.dp_size == 1:
            return
        for bucket in _buckets(gradients, REDUCE_BUCKET):
            flat = torch.cat([gradient.flatten() for gradient in bucket])
            dist.all_reduce(flat, group=self._topology.dp_group)
            flat /= self._topology.dp_size
            for gradient, mean in zip(bucket, flat.split([g.numel() for g in bucket]), strict=True):
                gradient.copy_(mean.view_as(gradient))

    def _total(self, squares: Tensor) -> Tensor:
        """The sum over the ranks of one model."""
        topology = self._topology
        if topology is not None and topology.tensor.size * topology.pp_size > 1:
            dist.all_reduce(squares, group=topology.model_group)
        return squares


class Ascent:
    """A training step's second pass, at w + e; nothing at all with rho 0."""

    def __init__(self, rho: float, trainer: Trainer, topology: Topology) -> None:
        self._trainer, self._topology = trainer, topology
        self._sam = Sam(trainer.parameters(), rho, trainer.spectral, topology) if rho else None

    def take_gradients(self, tokens_BT: Tensor, targets_BT: Tensor, loss: Tensor) -> dict[str, Tensor]:
        """Gradients at w + e in place of those at w, as complete and pulled back as those were. Collective.

        `loss` is this rank's of the pass at w. Returns this rank's term of the sum over all ranks of `sharpness`,
        L(w + e) - L(w), still on the device; with rho 0 nothing.
        """
        if self._sam is None:
            return {}
        trainer, topology = self._trainer, self._topology
        self._sam.ascend()
        higher = trainer.pipeline.train(tokens_BT, targets_BT)
        sum_partial_gradients(trainer.parameters(), topology.tensor)
        trainer.spectral.pull_back()
        self._sam.restore()
        return {"sharpness": rise_term(loss, higher, trainer.pipeline, topology)}


def _squares(gradients: Sequence[Tensor]) -> Tensor:
    """Σ g², a number in fp64."""
    if not gradients:
        return torch.zeros((), dtype=torch.float64)
    return torch.stack(torch._foreach_norm(list(gradients))).double().square().sum()


def _buckets(tensors: Sequence[Tensor], limit: int) -> Iterator[list[Tensor]]:
    """Neighbours together as long as they have at most `limit` numbers; a larger one is alone."""
    bucket: list[Tensor] = []
    for tensor in tensors:
        if bucket and sum(t.numel() for t in bucket) + tensor.numel() > limit:
            yield bucket
            bucket = []
        bucket.append(tensor)
    if bucket:
        yield bucket
