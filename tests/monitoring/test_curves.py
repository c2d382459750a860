"""Fewer points, the same extremes."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from monitoring.curves import is_huge, stretches, thin


@given(st.integers(0, 10_000), st.integers(200, 6000))
def test_thin_keeps_the_extremes_and_both_ends(seed, size):
    values = np.random.default_rng(seed).standard_normal(size)
    steps = np.arange(1, size + 1)
    thin_steps, thin_values = thin(steps, values, points=100)
    assert thin_steps.size <= 102
    assert thin_values.min() == values.min() and thin_values.max() == values.max()
    assert thin_steps[0] == 1 and thin_steps[-1] == size and (np.diff(thin_steps) > 0).all()
    assert (values[thin_steps - 1] == thin_values).all()


def test_a_lone_spike_survives_beside_what_is_no_number():
    values = np.zeros(50_000)
    values[30_001], values[30_002], values[:10_000] = 72.0, np.nan, np.nan
    steps, kept = thin(np.arange(50_000), values)
    assert steps.size <= 2002 and kept[steps == 30_001].tolist() == [72.0] and np.isnan(kept[0])


def test_few_points_stay_as_they_are():
    steps, values = thin(np.arange(5), np.arange(5.0))
    assert steps.size == values.size == 5


@given(st.integers(1, 1000), st.integers(1, 200))
def test_stretches_cover_everything_once(size, count):
    found = stretches(size, count)
    assert [point for begin, end in found for point in range(begin, end)] == list(range(size))
    assert len(found) == min(size, count)


def test_an_axis_is_logarithmic_where_spikes_are_huge():
    assert is_huge(np.array([2.0, 72.0, 2.0])) and not is_huge(np.array([5.5, 2.9]))
    assert not is_huge(np.array([-1.0, 72.0])) and not is_huge(np.array([np.nan, np.inf]))
