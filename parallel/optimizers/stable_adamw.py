"""StableAdamW: AdamW whose learning rate is divided, tensor by tensor, by how much the gradients outgrow the moments.

With m and v Adam's moments after this step, debiased, and for each tensor

    RMS_t = sqrt(mean(g^2 / max(v, eps^2)))        eta_t = lr / max(1, RMS_t)

    w = w - eta_t (weight_decay w + m / (sqrt(v) + eps))

Source: Wortsman et al. 2023 ("Stable and low-precision training for large-scale vision-language models"), algorithm 2.
The paper debiases by betas that grow with t; the moments here are Adam's own, which debiased are the same numbers.
A tensor is what a checkpoint names: q, k and v, and gate and up, have each an RMS of their own, as if they were not
packed. Rows that pad the vocabulary are not in the mean.
"""

import math
from collections.abc import Iterable, Mapping, Sequence

import torch
import torch.distributed as dist
from torch import Tensor, nn

from parallel.optimizers.adam import MOMENTS, directions, roots, update_moments
from parallel.optimizers.fragments import FragmentOptimizer, Group, Held, Stretch, stretches
from parallel.topology import Topology


class StableAdamW(FragmentOptimizer):
    """One all-reduce of a number per tensor for each group of parameters, over the ranks that share them."""

    def __init__(
        self,
        groups: Iterable[Group],
        live_rows: Mapping[nn.Parameter, int],
        *,
        lr: float,
        betas: tuple[float, float],
        eps: float,
    ) -> None:
        """`live_rows`: of parameters that are padded, how many rows of the whole tensor are not padding."""
        super().__init__(groups, lr=lr, betas=betas, eps=eps)
        self._live_rows = live_rows
        self._tensors: dict[Tensor, list[Stretch]] = {}
        self._numbers: dict[Tensor, Tensor] = {}

    def moment_keys(self, parameter: nn.Parameter) -> tuple[str, ...]:
        return MOMENTS

    def hold(self, flat: Tensor, fragments: list[Held], topology: Topology) -> None:
        super().hold(flat, fragments, topology)
        self._topology = topology
        self._tensors[flat] = stretches(fragments)
        numbers = [self._count(stretch, topology.tensor.size) for stretch in self._tensors[flat]]
        self._numbers[flat] = torch.tensor(numbers, dtype=torch.float64, device=flat.device)

    def _count(self, stretch: Stretch, tp_size: int) -> int:
        """Numbers of the whole tensor."""
        shards = [tp_size if dim == stretch.sharding.dim else 1 for dim in range(len(stretch.shape))]
        rows, *columns = [size * count for size, count in zip(stretch.shape, shards, strict=True)]
        return math.prod([self._live_rows.get(stretch.held.parameter, rows), *columns])

    def update(self, group: Group, flat: Tensor, fragments: Sequence[Held]) -> None:
        gradients = [held.gradient(flat) for held in fragments]
        update_moments(fragments, gradients, group)
        root = roots(fragments, group)
        etas = group["lr"] / self._rms(flat, _ratios(gradients, root, group["eps"])).clamp(min=1.0)
        steps = directions(fragments, root, group)
        for stretch, eta in zip(self._tensors[flat], etas.to(flat.dtype).unbind(), strict=True):
            if stretch.last > stretch.first:
                weight = stretch.of(stretch.held.weight)
                weight.mul_(1 - eta * group["weight_decay"]).sub_(eta * stretch.of(steps[stretch.place]))

    def _rms(self, flat: Tensor, ratios: Sequence[Tensor]) -> Tensor:
        """RMS_t of each tensor, the same on every rank that holds a part of it; `ratios` by fragment."""
        first = self._topology.tensor.rank == 0
        sums = torch.zeros_like(self._numbers[flat])
        for index, stretch in enumerate(self._tensors[flat]):
            counted = first or stretch.sharding.dim is not None  # of copies, one
            if counted and stretch.last > stretch.first:
                sums[index] = stretch.of(ratios[stretch.place]).sum(dtype=torch.float64)
        dist.all_reduce(sums, group=self._topology.stage_group)
        return (sums / self._numbers[flat]).sqrt()


def _ratios(gradients: Sequence[Tensor], roots: Sequence[Tensor], eps: float) -> list[Tensor]:
    """g^2 / max(v, eps^2)."""
    return [(g / root.clamp(min=eps)).square() for g, root in zip(gradients, roots, strict=True)]
