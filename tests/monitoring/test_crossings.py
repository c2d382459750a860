"""Which layer and head passed a limit first."""

import numpy as np
import pytest

from configs.errors import DataError
from monitoring.crossings import Crossing, detectors_of, first_crossings

STEPS = np.array([1, 5, 10, 15])


def test_the_first_head_of_each_layer_earliest_first():
    ratio = np.ones((4, 3, 2))
    ratio[3:, 0, 1] = 0.05
    ratio[2:, 2, 0] = 0.01
    ratio[3:, 2, 1] = 0.0
    assert first_crossings(STEPS, ratio, 0.1, below=True) == [
        Crossing(step=10, layer=2, head=0, value=0.01),
        Crossing(step=15, layer=0, head=1, value=0.05),
    ]


def test_of_one_measurement_the_line_that_meets_the_limit_first():
    ratio = np.ones((4, 2, 2))
    ratio[1:, 0, 0] = [0.9, 0.0, 0.0]  # meets 0.1 late between 5 and 10
    ratio[1:, 1, 1] = [0.2, 0.05, 0.0]  # was near it already
    found = first_crossings(STEPS, ratio, 0.1, below=True)
    assert [crossing.place for crossing in found] == ["layer 1 head 1", "layer 0 head 0"]


def test_a_head_that_recovers_has_still_been_first():
    ratio = np.ones((4, 1, 2))
    ratio[1, 0, 1] = 0.05
    ratio[3, 0, 0] = 0.01
    assert [(found.step, found.head) for found in first_crossings(STEPS, ratio, 0.1, below=True)] == [(5, 1)]


def test_above_a_limit_and_without_heads():
    cosine = np.array([[0.1, 0.2], [0.5, 0.995], [0.999, 1.0], [1.0, 1.0]])
    found = first_crossings(STEPS, cosine, 0.99, below=False)
    assert [(crossing.place, crossing.step) for crossing in found] == [("layer 1", 5), ("layer 0", 10)]


def test_what_does_not_last_is_passed_over():
    cosine = np.array([[1.0, 0.1], [1.0, 1.0], [0.5, 1.0], [1.0, 1.0]])
    lasting = first_crossings(STEPS, cosine, 0.99, below=False, lasting=10)
    assert [(crossing.layer, crossing.step) for crossing in lasting] == [(1, 5)]
    assert [found.layer for found in first_crossings(STEPS, cosine, 0.99, below=False, lasting=4)] == [0, 1]
    assert first_crossings(STEPS, cosine, 0.99, below=False, lasting=11) == []


def test_what_is_no_number_has_not_passed():
    ratio = np.full((4, 1, 1), np.nan)
    assert first_crossings(STEPS, ratio, 0.1, below=True) == []
    ratio[2:] = 0.0  # no line leads to it: the measurement itself
    assert first_crossings(STEPS, ratio, 0.1, below=True)[0].step == 10


def test_without_measurements():
    assert first_crossings(np.empty(0, np.int64), np.empty(0), 0.1, below=True) == []


def test_the_limits_are_those_of_the_run(tmp_path):
    assert detectors_of(tmp_path).entropy.floor == 0.1
    (tmp_path / "config.yaml").write_text("stability: {detectors: {entropy: {floor: 0.2}}}\n")
    assert detectors_of(tmp_path).entropy.floor == 0.2
    (tmp_path / "config.yaml").write_text("stability: {detectors: {entropy: {flor: 0.2}}}\n")
    with pytest.raises(DataError, match=r"config\.yaml: stability\.detectors"):
        detectors_of(tmp_path)
