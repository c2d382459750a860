"""Loss that is not finite, or above that of the first step."""

import math

import numpy as np
import pytest

from configs.stability import DivergenceConfig
from stability.detectors import Observation
from stability.detectors.divergence import Divergence, NonFinite
from tests.stability.detectors.runs import alarms_of, assert_same_after_a_resume, steps

pytestmark = pytest.mark.filterwarnings("error")


def diverging() -> Divergence:
    return Divergence(DivergenceConfig(steps=5))


@pytest.mark.parametrize(
    ("loss", "norm", "reason"),
    [
        (math.nan, 1.0, "loss is not finite"),
        (math.inf, 1.0, "loss is not finite"),
        (2.0, math.nan, "gradient norm is not finite"),
        (2.0, math.inf, "gradient norm is not finite"),
        (math.nan, math.inf, "loss is not finite"),
    ],
)
def test_what_is_not_finite_is_fatal_unless_its_update_was_left_out(loss: float, norm: float, reason: str) -> None:
    for kept, severity in ((True, "fatal"), (False, "warning")):
        seen = [Observation(1, 2.0, 1.0), Observation(2, loss, norm, kept), Observation(3, 2.0, 1.0)]
        (alarm,) = alarms_of(NonFinite(), seen)
        assert (alarm.step, alarm.severity, alarm.reason) == (2, severity, reason)


def test_it_keeps_nothing_in_mind() -> None:
    assert_same_after_a_resume(NonFinite, steps([1.0, math.nan, 2.0]))


def test_a_loss_that_stays_above_the_first_has_diverged() -> None:
    loss = [5.5, 4.0, 3.0, 5.6, 5.7, 5.4, 5.6, 5.7, 6.0, 7.0, 8.0, 3.0, 3.0]
    (alarm,) = alarms_of(diverging(), steps(loss))
    assert (alarm.step, alarm.severity, alarm.value, alarm.threshold) == (11, "alarm", 8.0, 5.5)
    assert alarms_of(diverging(), steps(loss[:10])) == []


def test_learning_from_a_noisy_beginning_is_no_divergence() -> None:
    for seed in range(20):
        loss = np.linspace(5.5, 2.4, 500) + np.random.default_rng(seed).normal(0, 0.05, 500)
        assert alarms_of(Divergence(DivergenceConfig()), steps(loss)) == []


def test_a_loss_that_is_not_finite_neither_counts_nor_is_the_first() -> None:
    loss = [math.nan, 5.5, 5.6, 5.6, math.inf, 5.6, math.nan, 5.6, 5.6, 5.0]
    assert [alarm.step for alarm in alarms_of(diverging(), steps(loss))] == [9]


def test_a_resumed_run_compares_with_the_same_first_loss() -> None:
    loss = np.concatenate([[5.5], np.full(6, 5.0), np.full(8, 6.0), [5.0], np.full(7, 6.0)])
    loss[3] = math.nan
    assert_same_after_a_resume(diverging, steps(loss))
