"""Each matrix whole on one rank, and back: for what cannot be computed on parts of it.

Tensor-parallel ranks hold shards of a matrix, and data-parallel ranks (ZeRO) stretches of the flattened shards. One
all-to-all over all of them brings each matrix to the rank that works on it, one takes the result back.

Shapes: R ranks that share the parameters (tensor-parallel fastest), K matrices.
"""

from collections.abc import Callable, Sequence

import torch
import torch.distributed as dist
from torch import Tensor

from parallel.optimizers.fragments import Stretch
from parallel.topology import Topology


class MatrixExchange:
    """The matrices of which this rank holds stretches, and which rank works on which."""

    def __init__(self, tensors: Sequence[Stretch], topology: Topology, device: torch.device) -> None:
        """Collective over the ranks that share the parameters. `tensors`: the same matrices on each of them."""
        self._tensors = tensors
        self._group, self._tp_size = topology.stage_group, topology.tensor.size
        self._rank, self._size = dist.get_rank(self._group), dist.get_world_size(self._group)
        self._extents_RK = self._gather_extents(device)
        self._owners_K = self._assign()
        self._order = sorted(range(len(tensors)), key=lambda k: self._owners_K[k])
        self._mine = [k for k in self._order if self._owners_K[k] == self._rank]

    def apply(self, function: Callable[[Tensor], Tensor], parts: Sequence[Tensor]) -> list[Tensor]:
        """`function` of each whole matrix, on one rank: of parts that are stretches, the stretches of the result."""
        received = self._send([parts[k] for k in self._order], self._lengths_to_owners(), self._lengths_of_mine())
        results = [function(matrix) for matrix in self._join(received)]
        returned = self._send(self._cut(results), self._lengths_of_mine(), self._lengths_to_owners())
        lengths = [self._length(self._rank, k) for k in self._order]
        stretches = dict(zip(self._order, returned.split(lengths), strict=True))
        return [stretches[k] for k in range(len(parts))]

    def _gather_extents(self, device: torch.device) -> list[list[tuple[int, int]]]:
        mine = torch.tensor([(s.first, s.last) for s in self._tensors], device=device)
        everyones = [torch.empty_like(mine) for _ in range(self._size)]
        dist.all_gather(everyones, mine, group=self._group)
        return [[(first, last) for first, last in extents.tolist()] for extents in everyones]

    def _assign(self) -> list[int]:
        """A rank for each matrix: the least busy of those that hold the most of it already."""
        busy = [0] * self._size
        owners = []
        for k, stretch in enumerate(self._tensors):
            held = [self._length(rank, k) for rank in range(self._size)]
            owner = min((rank for rank in range(self._size) if held[rank] == max(held)), key=lambda rank: busy[rank])
            rows, columns = stretch.shape
            busy[owner] += rows * columns * min(rows, columns)
            owners.append(owner)
        return owners

    def _length(self, rank: int, k: int) -> int:
        first, last = self._extents_RK[rank][k]
        return last - first

    def _lengths_to_owners(self) -> list[int]:
        lengths = [0] * self._size
        for k, owner in enumerate(self._owners_K):
            lengths[owner] += self._length(self._rank, k)
        return lengths

    def _lengths_of_mine(self) -> list[int]:
        return [sum(self._length(rank, k) for k in self._mine) for rank in range(self._size)]

    def _send(self, parts: list[Tensor], to: list[int], by: list[int]) -> Tensor:
        """`to`, `by`: how many numbers go to and come from each rank."""
        sent = torch.cat(parts) if parts else self._tensors[0].held.weight[:0]
        if self._size == 1:
            return sent
        received = sent.new_empty(sum(by))
        dist.all_to_all_single(received, sent, by, to, group=self._group)
        return received

    def _join(self, received: Tensor) -> list[Tensor]:
        """This rank's matrices, of their stretches by sending rank."""
        shards = {k: received.new_empty(self._tp_size, _numbers(self._tensors[k])) for k in self._mine}
        at = 0
        for rank in range(self._size):
            for k in self._mine:
                (first, last), length = self._extents_RK[rank][k], self._length(rank, k)
                shards[k][rank % self._tp_size, first:last] = received[at : at + length]
                at += length
        return [self._whole(self._tensors[k], shards[k]) for k in self._mine]

    def _whole(self, tensor: Stretch, shards: Tensor) -> Tensor:
        parts = shards.view(self._tp_size, *tensor.shape).unbind()
        return parts[0] if tensor.sharding.dim is None else torch.cat(parts, tensor.sharding.dim)

    def _cut(self, matrices: list[Tensor]) -> list[Tensor]:
        """The stretches of this rank's matrices, as `_join` found them."""
        shards = {}
        for k, matrix in zip(self._mine, matrices, strict=True):
            dim = self._tensors[k].sharding.dim
            parts = [matrix] * self._tp_size if dim is None else matrix.chunk(self._tp_size, dim)
            shards[k] = [part.flatten() for part in parts]
        return [
            shards[k][rank % self._tp_size][slice(*self._extents_RK[rank][k])]
            for rank in range(self._size)
            for k in self._mine
        ]


def _numbers(tensor: Stretch) -> int:
    rows, columns = tensor.shape
    return rows * columns
