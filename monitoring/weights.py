"""Norms of each matrix's gradient, update and weights, and of each query head's gradient.

Gradients are averaged over data-parallel ranks when those of a step are complete; then each rank owns a part of them
and of the fp32 weights (ZeRO-1/2). So every norm is a sum of squares over the fragments a rank owns, added up over all
ranks together with everything else that is measured. A fragment is a range of a flattened weight, and so is a piece:
the rows of a matrix, of a query head, or of all values.

Shapes: P pieces of this rank.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from monitoring.gather import Labels
from monitoring.parts import AttentionPart
from parallel.engine import Engine, Fragment
from parallel.linear import ShardedLinear
from parallel.spectral import SpectralMatrix
from parallel.topology import Topology

LONGEST = {"cpu": 1 << 16, "cuda": 1 << 30}
"""Numbers squared and added in fp32 at a time: a CPU adds them one by one, so more would round too often."""


@dataclass(frozen=True)
class Piece:
    """The numbers first, ..., last - 1 of this rank's part of a flattened weight, and what they are of."""

    label: tuple[int, ...]
    weight: nn.Parameter
    first: int
    last: int

    def of(self, fragment: Fragment, values: Tensor) -> Tensor:
        """This piece's numbers among `values`, which are the fragment's; none where they do not overlap."""
        start = max(self.first - fragment.first, 0)
        return values[start : max(self.last - fragment.first, start)]


class WeightMonitor:
    """Sums of squares over what this rank owns: gradients before the update, weights and their change after it."""

    def __init__(
        self,
        engine: Engine,
        matrices: Sequence[SpectralMatrix],
        attention: Iterable[tuple[int, AttentionPart]],
        index: Mapping[str, int],
        topology: Topology,
    ) -> None:
        """`index`: the place of each matrix among those of the whole model."""
        self._engine, tp_rank = engine, topology.tensor.rank
        self._matrices = [_piece((index[m.name],), m.layer, m.rows) for m in matrices]
        self._heads: list[Piece] = []
        self._values: list[Piece] = []
        for layer, block in attention:
            self._heads += _query_heads(layer, block, tp_rank)
            self._values.append(_piece((layer,), *block.projection("v")))
        self._gradients: list[Tensor] = []
        self._before: list[Tensor] = []
        labels = _labels(self._matrices)
        self.sums: Labels = {
            "grad": labels,
            "head_grad": _labels(self._heads),
            "value_grad": _labels(self._values),
            "update": labels,
            "weight": [(*label, tp_rank) for label in labels],
        }
        self.maxima: Labels = {}

    @torch.no_grad()
    def before_update(self) -> None:
        """Take the squares of the averaged gradients, and a copy of the weights that this rank will update."""
        fragments = list(self._engine.owned())
        gradients = []
        for fragment in fragments:
            assert fragment.gradient is not None, "gradients are averaged when `accumulate` ends"
            gradients.append(fragment.gradient)
        pieces = [*self._matrices, *self._heads, *self._values]
        sizes = [len(self._matrices), len(self._heads), len(self._values)]
        self._gradients = list(squares(pieces, fragments, gradients).split(sizes))
        self._before = [fragment.weight.clone() for fragment in fragments]

    @torch.no_grad()
    def collect(self) -> dict[str, Tensor]:
        """Sums of squares by label; the copy of the weights is let go."""
        fragments = list(self._engine.owned())
        weights = [fragment.weight for fragment in fragments]
        changes = [before.sub_(weight) for before, weight in zip(self._before, weights, strict=True)]
        update = squares(self._matrices, fragments, changes)
        grad, head_grad, value_grad = self._gradients
        self._before, self._gradients = [], []
        return {
            "grad": grad,
            "head_grad": head_grad,
            "value_grad": value_grad,
            "update": update,
            "weight": squares(self._matrices, fragments, weights),
        }


def squares(pieces: Sequence[Piece], fragments: Sequence[Fragment], values: Sequence[Tensor]) -> Tensor:
    """(P,) sums of squares of each piece's numbers among `values` of the fragments, in fp64; 0 where there are none."""
    places: dict[int, list[int]] = {}
    for place, piece in enumerate(pieces):
        places.setdefault(id(piece.weight), []).append(place)
    parts, of = [], []
    for fragment, flat in zip(fragments, values, strict=True):
        for place in places.get(id(fragment.parameter), []):
            split = pieces[place].of(fragment, flat).split(LONGEST[flat.device.type])
            parts += split
            of += [place] * len(split)
    sums_P = torch.zeros(len(pieces), dtype=torch.float64, device=values[0].device)
    if parts:
        norms = torch.stack(torch._foreach_norm(parts)).double()  # on a GPU a few kernels for all of them
        sums_P.index_add_(0, torch.tensor(of, device=sums_P.device), norms.square())
    return sums_P


def _labels(pieces: Iterable[Piece]) -> list[tuple[int, ...]]:
    return [piece.label for piece in pieces]


def _piece(label: tuple[int, ...], layer: ShardedLinear, rows: slice) -> Piece:
    width = layer.weight.shape[1]
    return Piece(label, layer.weight, rows.start * width, rows.stop * width)


def _query_heads(layer: int, attention: AttentionPart, tp_rank: int) -> list[Piece]:
    linear, rows = attention.projection("q")
    starts = range(rows.start, rows.stop, attention.head_size)
    return [
        _piece((layer, tp_rank * len(starts) + head), linear, slice(start, start + attention.head_size))
        for head, start in enumerate(starts)
    ]
