"""Labels at line ends never overlap and move no further than they must."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from monitoring.style import lr_text, spread


@given(st.lists(st.floats(0, 1), max_size=8).map(sorted))
def test_spread_separates_and_keeps_the_centre(heights):
    moved = spread(heights, 0.1)
    assert all(after - before >= 0.1 - 1e-9 for before, after in pairwise(moved))
    assert sum(moved) == pytest.approx(sum(heights), abs=1e-9)


def test_spread_leaves_alone_what_is_apart():
    assert spread([0.1, 0.5, 0.9], 0.1) == pytest.approx([0.1, 0.5, 0.9])
    assert spread([0.5, 0.5], 0.1) == pytest.approx([0.45, 0.55])


def test_lr_text():
    assert [lr_text(lr) for lr in (3e-2, 1.5e-3, 1.0)] == ["3e-2", "1.5e-3", "1e0"]
