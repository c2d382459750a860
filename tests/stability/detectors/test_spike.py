"""Spikes in a loss and in a gradient norm, and healthy series that have none."""

import math

import numpy as np
import pytest

from configs.stability import LossSpikeConfig
from stability.detectors.spike import RollingScatter, Spike
from tests.stability.detectors.runs import alarms_of, assert_same_after_a_resume, steps

pytestmark = pytest.mark.filterwarnings("error")
CONFIG = LossSpikeConfig()


def loss_spikes() -> Spike:
    return Spike("loss_spike", "loss", CONFIG)


def norm_spikes() -> Spike:
    return Spike("grad_spike", "grad_norm", CONFIG)


def learning(seed: int, length: int = 500) -> np.ndarray:
    """A loss that falls from 5.5 to 2.4, most of it at once, with noise of 0.05."""
    rng = np.random.default_rng(seed)
    return 2.4 + 3.1 * np.exp(-np.arange(length) / 60) + rng.normal(0, 0.05, length)


def norms(seed: int, length: int = 500, sd: float = 0.5) -> np.ndarray:
    """Gradient norms that fall at first and scatter by factors."""
    rng = np.random.default_rng(seed)
    return (0.5 + 4 * np.exp(-np.arange(length) / 30)) * rng.lognormal(0, sd, length)


@pytest.mark.parametrize("seed", range(20))
def test_healthy_runs_have_no_spikes(seed: int) -> None:
    healthy = steps(learning(seed), norms(seed))
    assert alarms_of(loss_spikes(), healthy) == [] and alarms_of(norm_spikes(), healthy) == []
    straight_line = steps(np.linspace(5.5, 2.4, 500) + np.random.default_rng(seed).normal(0, 0.05, 500))
    assert alarms_of(loss_spikes(), straight_line) == []


@pytest.mark.parametrize("at", [180, 300, 499])
def test_a_spike_is_told_at_its_step_and_never_again(at: int) -> None:
    loss, norm = learning(1), norms(1, sd=0.2)
    loss[at] += 3.0
    norm[at] *= 30.0
    (alarm,) = alarms_of(loss_spikes(), steps(loss))
    assert (alarm.detector, alarm.step, alarm.severity, alarm.where) == ("loss_spike", at + 1, "alarm", {})
    assert alarm.value == loss[at] and alarm.threshold < loss[at]
    (alarm,) = alarms_of(norm_spikes(), steps(loss, norm))
    assert (alarm.detector, alarm.step, alarm.severity) == ("grad_spike", at + 1, "alarm")
    assert alarm.value == norm[at] and norm[:at].mean() < alarm.threshold < norm[at]


@pytest.mark.parametrize(("factor", "found"), [(14.0, []), (28.0, [301])])
def test_a_gradient_norm_must_be_twenty_times_the_mean_however_little_it_scatters(
    factor: float, found: list[int]
) -> None:
    norm = np.random.default_rng(6).lognormal(0, 0.1, 400)
    norm[300] = factor
    assert [alarm.step for alarm in alarms_of(norm_spikes(), steps(np.full(400, 2.0), norm))] == found


def test_the_quick_rule_sees_what_the_steep_beginning_hides_from_the_long_one() -> None:
    loss = learning(2, 400)
    loss[300] = 3.6
    before = loss[:300]
    assert loss[300] < before.mean() + 7 * before.std(ddof=1)
    assert [alarm.step for alarm in alarms_of(loss_spikes(), steps(loss))] == [301]


def test_the_long_rule_is_olmos() -> None:
    rng = np.random.default_rng(0)
    loss = np.concatenate([rng.normal(2.0, 0.05, 150), rng.normal(2.0, 0.4, 150)])
    config = LossSpikeConfig(window=200, minimum=20, sigmas=3.0)
    detector = Spike("loss_spike", "loss", config)
    found = {alarm.step for alarm in alarms_of(detector, steps(loss))}
    expected = set()
    for step, value in enumerate(loss):
        for window, minimum, sigmas in ((200, 20, 3.0), (128, 64, 6.0)):
            before = loss[max(0, step - window) : step]
            if step >= minimum and value > before.mean() + sigmas * before.std(ddof=1):
                expected.add(step + 1)
    assert found == expected and len(expected) > 3


def test_a_fall_is_no_spike_and_neither_is_a_constant() -> None:
    loss = np.full(300, 3.0)
    loss[200] = 0.1
    assert alarms_of(loss_spikes(), steps(loss)) == []
    assert alarms_of(norm_spikes(), steps(loss, np.zeros(300))) == []


def test_what_is_not_finite_is_left_to_another_detector_and_spoils_nothing() -> None:
    loss, norm = learning(3), norms(3, sd=0.2)
    loss[250:253], norm[250:253] = (math.nan, math.inf, -math.inf), (math.inf, math.nan, math.inf)
    assert alarms_of(loss_spikes(), steps(loss)) == [] and alarms_of(norm_spikes(), steps(loss, norm)) == []
    loss[260], norm[260] = loss[260] + 3.0, norm[260] * 30.0
    assert [alarm.step for alarm in alarms_of(loss_spikes(), steps(loss))] == [261]
    assert [alarm.step for alarm in alarms_of(norm_spikes(), steps(loss, norm))] == [261]


def test_a_spike_whose_update_was_left_out_is_a_warning() -> None:
    loss = learning(4)
    loss[300] += 3.0
    seen = steps(loss)
    seen[300] = seen[300].__class__(301, loss[300], 1.0, kept=False)
    assert [alarm.severity for alarm in alarms_of(loss_spikes(), seen)] == ["warning"]


def test_a_resumed_run_has_the_same_spikes() -> None:
    config = LossSpikeConfig(window=30, minimum=10, sigmas=3.0)
    rng = np.random.default_rng(5)
    loss, norm = rng.normal(2, 0.1, 150), rng.lognormal(0, 0.3, 150)
    loss[[40, 90, 140]] += 1.0
    norm[[41, 91, 141]] *= 20.0
    loss[60] = math.nan
    seen = steps(loss, norm)
    assert_same_after_a_resume(lambda: Spike("loss_spike", "loss", config), seen)
    assert_same_after_a_resume(lambda: Spike("grad_spike", "grad_norm", config), seen)


def test_a_shorter_window_goes_on_from_the_newest_values() -> None:
    scatter = RollingScatter(4)
    for value in range(1, 8):
        scatter.add(value)
    assert scatter.values() == [4, 5, 6, 7] and scatter.statistics() == (5.5, np.std([4, 5, 6, 7], ddof=1))
    shorter, longer = RollingScatter(2), RollingScatter(9)
    shorter.replace(scatter.values())
    longer.replace(scatter.values())
    assert shorter.values() == [6, 7] and longer.values() == [4, 5, 6, 7] and (len(shorter), len(longer)) == (2, 4)
