"""Sums of squares of rows, from fragments that are cut anywhere."""

from itertools import pairwise

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from monitoring import weights as module
from monitoring.weights import Piece, squares
from parallel.engine import Fragment

WIDTH, ROWS = 5, (3, 1, 4)
"""Three pieces packed in one weight."""


def pieces(weight: nn.Parameter) -> list[Piece]:
    ends = [sum(ROWS[: i + 1]) * WIDTH for i in range(len(ROWS))]
    starts = [0, *ends[:-1]]
    return [Piece((i,), weight, start, end) for i, (start, end) in enumerate(zip(starts, ends, strict=True))]


def fragments(weight: nn.Parameter, cuts: list[int]) -> list[Fragment]:
    flat = weight.detach().flatten()
    bounds = [0, *sorted(cuts), len(flat)]
    return [Fragment(weight, first, flat[first:last], None) for first, last in pairwise(bounds) if last > first]


def expected(weight: Tensor) -> Tensor:
    return torch.stack([rows.double().square().sum() for rows in weight.detach().split(list(ROWS))])


@settings(max_examples=50, deadline=None)
@given(cuts=st.lists(st.integers(0, sum(ROWS) * WIDTH), max_size=4))
def test_fragments_cut_anywhere_add_up(cuts: list[int]) -> None:
    """The parts of two weights, whose owners would add them up over data-parallel ranks."""
    one, other = (nn.Parameter(torch.randn(sum(ROWS), WIDTH)) for _ in range(2))
    all_pieces = [*pieces(one), *pieces(other)]
    total = torch.zeros(len(all_pieces), dtype=torch.float64)
    for fragment in [*fragments(one, cuts), *fragments(other, cuts[:1])]:
        total += squares(all_pieces, [fragment], [fragment.weight])
    torch.testing.assert_close(total, torch.cat([expected(one), expected(other)]), rtol=1e-6, atol=0)


def test_long_sums_do_not_round_away() -> None:
    """Four million numbers, added in fp32 piece by piece."""
    values = torch.randn(1 << 22)
    weight = nn.Parameter(values)
    (total,) = squares([Piece((0,), weight, 0, len(values))], [Fragment(weight, 0, values, None)], [values])
    assert abs(total / values.double().square().sum() - 1) < 3e-6
    assert len(values) > module.LONGEST["cpu"]
