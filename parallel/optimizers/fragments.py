"""What a rank's flat tensors hold of the model: fragments of parameters, and of the tensors packed in them."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn

from parallel.sharding import Sharding
from parallel.topology import Topology

Group = dict[str, Any]
"""A group of parameters as torch's optimizers keep it, with the number of its updates in `step`."""


@dataclass(frozen=True)
class Held:
    """Numbers `first`, ... of a parameter, flattened, that this data-parallel rank owns; it may own none of them."""

    parameter: nn.Parameter
    first: int
    weight: Tensor
    """The fp32 weights; a view of the flat tensor."""
    at: int
    """Where they start in the flat tensor."""
    moments: dict[str, Tensor] = field(default_factory=dict)
    """What the optimizer keeps of them, by name, each shaped like `weight`."""

    def gradient(self, flat: Tensor) -> Tensor:
        """Their gradient, a view; `flat`: the flat tensor of which `weight` is a part."""
        assert flat.grad is not None, "the engine sets the gradient before each update"
        return flat.grad.narrow(0, self.at, self.weight.numel())


@dataclass(frozen=True)
class Stretch:
    """What a fragment holds of one tensor: of a parameter, or of one projection of a packed one.

    Numbers `first`, ..., `last` - 1 of this tensor-parallel rank's share of the tensor, flattened.
    """

    held: Held
    place: int
    """Which of the fragments it is part of."""
    shape: tuple[int, ...]
    """Of this tensor-parallel rank's share of the tensor."""
    at: int
    """Where it starts in the fragment."""
    first: int
    last: int

    @property
    def sharding(self) -> Sharding:
        return self.held.parameter.sharding  # type: ignore[attr-defined]

    def of(self, fragment: Tensor) -> Tensor:
        """Its numbers among those of the fragment."""
        return fragment[self.at : self.at + self.last - self.first]


def stretches(fragments: Sequence[Held]) -> list[Stretch]:
    """A stretch, if only of no numbers, of each tensor: the tensors that a checkpoint names, so q, k and v apart.

    All ranks that share these parameters get the same tensors in the same order.
    """
    return [stretch for place, held in enumerate(fragments) for stretch in _of_parameter(place, held)]


def _of_parameter(place: int, held: Held) -> Iterator[Stretch]:
    sharding: Sharding = held.parameter.sharding  # type: ignore[attr-defined]
    rows, *columns = held.parameter.shape
    blocks = [size for _, size in sharding.blocks] or [rows]
    assert sum(blocks) == rows, "projections are packed along the first dimension"
    width = held.parameter[0].numel()
    start = 0
    for size in blocks:
        end = start + size * width
        first = min(max(held.first, start), end)
        last = max(min(held.first + held.weight.numel(), end), first)
        yield Stretch(held, place, (size, *columns), max(first - held.first, 0), first - start, last - start)
        start = end


class FragmentOptimizer(torch.optim.Optimizer):
    """An optimizer that updates fragments, one group of parameters at a time as DeepSpeed asks it to.

    Moments lie beside their fragments, not in `state`: a parameter has those that its update needs.
    """

    def __init__(
        self, groups: Iterable[Group], *, lr: float, betas: tuple[float, float], eps: float, weight_decay: float = 0.0
    ) -> None:
        super().__init__(groups, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay, "step": 0})
        self._held: dict[Tensor, list[Held]] = {}

    def moment_keys(self, parameter: nn.Parameter) -> tuple[str, ...]:
        """Names of the moments of a parameter."""
        raise NotImplementedError

    def hold(self, flat: Tensor, fragments: list[Held], topology: Topology) -> None:
        """Make the moments of a group's fragments, all of its parameters in order, and what `update` needs.

        Collective over the ranks that share the parameters.
        """
        for held in fragments:
            held.moments.update({key: torch.zeros_like(held.weight) for key in self.moment_keys(held.parameter)})
        self._held[flat] = fragments

    def fragments(self) -> Iterator[Held]:
        """What the flat tensors of all groups hold."""
        return chain.from_iterable(self._held.values())

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Update all groups that are in `param_groups` with the gradients of their flat tensors."""
        assert closure is None, "gradients are complete before the engine steps"
        for group in self.param_groups:
            (flat,) = group["params"]
            group["step"] += 1
            self.update(group, flat, self._held[flat])

    def update(self, group: Group, flat: Tensor, fragments: Sequence[Held]) -> None:
        """Update a group's fragments. Collective over the ranks that share its parameters."""
        raise NotImplementedError
