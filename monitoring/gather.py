"""What each rank measured, combined on all of them: one all-gather, whatever is measured.

A rank reports named quantities. A quantity has one number for each of its labels, which say where the number belongs in
the whole model: (layer, head), (matrix, tensor-parallel rank), or () for a number of the whole model. Labels that
several ranks report are added up, or the largest is taken; every rank gets the same table.

Shapes: R ranks, N numbers of a rank (ranks with fewer are padded), Q numbers of the whole model.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import TypeVar

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from parallel.topology import Topology

T = TypeVar("T")
Labels = Mapping[str, Sequence[tuple[int, ...]]]


class Gather:
    """Adds up `sums` and takes the largest of `maxima` over all ranks.

    Labels are tuples of indices that count from 0 without gaps: a quantity's numbers fill an array of as many
    dimensions as a label has indices. NaN is passed on.
    """

    def __init__(self, sums: Labels, maxima: Labels, topology: Topology) -> None:
        """The labels of what this rank reports; others may report other labels. Collective: ranks tell each other."""
        self._topology = topology
        self._own = {name: len(labels) for name, labels in [*sums.items(), *maxima.items()]}
        assert len(self._own) == len(sums) + len(maxima), "a quantity is added up or its largest is taken, not both"
        told = tell(({k: list(v) for k, v in sums.items()}, {k: list(v) for k, v in maxima.items()}), topology)
        self._longest = max(sum(len(labels) for part in parts for labels in part.values()) for parts in told)
        self._sums, self._maxima = _Table([s for s, _ in told]), _Table([m for _, m in told])
        lengths = [(sum(map(len, s.values())), sum(map(len, m.values()))) for s, m in told]
        starts = [rank * self._longest for rank in range(len(told))]
        self._from_sums = _spans((start, start + n) for start, (n, _) in zip(starts, lengths, strict=True))
        self._from_maxima = _spans((start + n, start + n + m) for start, (n, m) in zip(starts, lengths, strict=True))

    def __call__(self, values: Mapping[str, Tensor]) -> dict[str, np.ndarray]:
        """Quantities of this rank, in the order of their labels -> those of the whole model, in fp64. Collective."""
        assert values.keys() == self._own.keys()
        own = [values[name].detach().double().flatten() for name in self._own]
        for name, tensor in zip(self._own, own, strict=True):
            assert len(tensor) == self._own[name], f"{name}: {len(tensor)} numbers, {self._own[name]} labels"
        mine_N = torch.zeros(self._longest, dtype=torch.float64, device=self._topology.device)
        numbers = torch.cat(own)
        mine_N[: len(numbers)] = numbers
        everyone = mine_N
        if self._topology.world_size > 1:
            everyone = mine_N.new_empty(self._topology.world_size, self._longest)
            dist.all_gather(list(everyone), mine_N)
        flat = everyone.flatten().cpu().numpy()
        sums, maxima = np.zeros(self._sums.size), np.full(self._maxima.size, -np.inf)
        np.add.at(sums, self._sums.places, flat[self._from_sums])
        with np.errstate(invalid="ignore"):  # a NaN is meant to stay one
            np.maximum.at(maxima, self._maxima.places, flat[self._from_maxima])
        return self._sums.arrays(sums) | self._maxima.arrays(maxima)


class _Table:
    """Where each rank's numbers belong among those of the whole model."""

    def __init__(self, ranks: Sequence[Labels]) -> None:
        self._shapes: dict[str, tuple[int, ...]] = {}
        for name, labels in (named for rank in ranks for named in rank.items()):
            for label in labels:
                before = self._shapes.get(name, (0,) * len(label))
                self._shapes[name] = tuple(max(size, index + 1) for size, index in zip(before, label, strict=True))
        self._starts: dict[str, int] = {}
        self.size = 0
        for name in sorted(self._shapes):
            self._starts[name] = self.size
            self.size += int(np.prod(self._shapes[name]))
        places = [self._places(name, labels) for rank in ranks for name, labels in rank.items() if labels]
        self.places = np.concatenate([np.empty(0, dtype=np.int64), *places])

    def _places(self, name: str, labels: Sequence[tuple[int, ...]]) -> np.ndarray:
        """Where a quantity's numbers with these labels are in the flat table."""
        shape = self._shapes[name]
        if not shape:
            return np.array([self._starts[name]])
        return self._starts[name] + np.ravel_multi_index(tuple(np.array(labels).T), shape)

    def arrays(self, flat: np.ndarray) -> dict[str, np.ndarray]:
        """The numbers of the whole model by quantity."""
        return {
            name: flat[start : start + int(np.prod(self._shapes[name]))].reshape(self._shapes[name])
            for name, start in self._starts.items()
        }


def tell(mine: T, topology: Topology) -> list[T]:
    """What every rank says, by rank. Collective, of any object: for what is told once."""
    told: list[T | None] = [mine] * topology.world_size
    if topology.world_size > 1:
        dist.all_gather_object(told, mine)
    return told  # type: ignore[return-value]


def _spans(spans: Iterable[tuple[int, int]]) -> np.ndarray:
    return np.concatenate([np.arange(start, stop) for start, stop in spans])
