"""Entropy collapse, its early warning, exploding logits and rank collapse in made-up measurements."""

import math

import numpy as np
import pytest

from configs.stability import EntropyConfig, LogitConfig, RankCollapseConfig
from stability.alarms import Alarm
from stability.detectors import Observation
from stability.detectors.attention import EarlyWarning, EntropyCollapse, LogitExplosion, RankCollapse
from tests.stability.detectors.runs import alarms_of, assert_same_after_a_resume, measured, steps

pytestmark = pytest.mark.filterwarnings("error")
L, A = 4, 4
WHERE = {"layer": 2, "head": 1}


def collapse(window: int = 9) -> EntropyCollapse:
    return EntropyCollapse(EntropyConfig(window=window))


def warning() -> EarlyWarning:
    return EarlyWarning(EntropyConfig())


def logits() -> LogitExplosion:
    return LogitExplosion(LogitConfig())


def rank() -> RankCollapse:
    return RankCollapse(RankCollapseConfig())


def sinking(seed: int, length: int = 50, shape: tuple[int, int] = (L, A)) -> np.ndarray:
    """(S, L, A) entropy ratios that sink from .98 to .75, with noise of .01."""
    fall_S = np.linspace(0.98, 0.75, length)[:, None, None]
    return np.clip(fall_S + np.random.default_rng(seed).normal(0, 0.01, (length, *shape)), 0, 1)


def falling(start: int, rate: float, layer: int = 2, length: int = 40, seed: int = 0) -> np.ndarray:
    """As `sinking`, until the heads of one layer fall by `rate` a measurement, from `start` on."""
    ratio_SLA = sinking(seed, length)
    fall_S = np.clip(np.arange(length) - start, 0, None) * rate
    ratio_SLA[:, layer] = np.clip(ratio_SLA[:, layer] - fall_S[:, None], 0.01, 1)
    return ratio_SLA


def with_logits(ratio_SLA: np.ndarray, logit: float, interval: int = 10) -> list[Observation]:
    return measured(interval, entropy_ratio=ratio_SLA, max_logit=np.full(ratio_SLA.shape, logit))


@pytest.mark.parametrize("shape", [(L, A), (1, 1), (1, 4), (4, 1)])
@pytest.mark.parametrize("seed", range(5))
def test_entropy_that_sinks_while_a_model_learns_is_no_alarm(seed: int, shape: tuple[int, int]) -> None:
    seen = with_logits(sinking(seed, shape=shape), 100.0)
    assert alarms_of(collapse(), seen) == [] and alarms_of(warning(), seen) == []
    rng = np.random.default_rng(seed)  # each head finds its own work, most of it early
    end_LA, time_LA = rng.uniform(0.45, 0.95, shape), rng.uniform(30, 150, shape)
    at_S = 10.0 * np.arange(1, 51)[:, None, None]
    seen = with_logits(end_LA + (0.98 - end_LA) * np.exp(-at_S / time_LA), 20.0)
    assert alarms_of(EntropyCollapse(EntropyConfig()), seen) == [] and alarms_of(warning(), seen) == []


def first(alarms: list[Alarm]) -> Alarm:
    assert alarms
    return alarms[0]


def test_heads_under_the_floor_are_a_collapse_as_soon_as_they_are_more_than_a_quarter() -> None:
    ratio_SLA = np.full((6, L, A), 0.9)
    ratio_SLA[1:, 2] = 0.09
    assert alarms_of(collapse(), measured(entropy_ratio=ratio_SLA, max_logit=np.full(ratio_SLA.shape, 100.0))) == [], (
        "a quarter is not more than a quarter"
    )
    ratio_SLA[3, 0, 3] = 0.05
    (alarm,) = alarms_of(collapse(), measured(entropy_ratio=ratio_SLA, max_logit=np.full(ratio_SLA.shape, 100.0)))
    assert (alarm.step, alarm.severity, alarm.value, alarm.threshold) == (40, "alarm", 5 / 16, 0.25)
    assert alarm.where == {"layer": 0, "head": 3} and "5 of 16 heads" in alarm.reason


def test_heads_far_below_their_own_median_are_a_collapse_and_the_lowest_of_them_is_named() -> None:
    ratio_SLA = np.full((12, L, A), 0.9)
    ratio_SLA[:, 3, 3] = 0.3  # has always been so
    ratio_SLA[8, :2] = 0.65
    ratio_SLA[8, 1, 2] = 0.6
    (alarm,) = alarms_of(collapse(), measured(entropy_ratio=ratio_SLA, max_logit=np.full(ratio_SLA.shape, 100.0)))
    assert alarm.step == 90 and alarm.where == {"layer": 1, "head": 2} and alarm.value == 0.5


def test_a_median_needs_half_of_its_window() -> None:
    for before, expected in ((4, []), (5, [60])):
        ratio_SLA = np.full((before + 1, 1, 1), 0.9)
        ratio_SLA[-1] = 0.5
        assert [
            alarm.step
            for alarm in alarms_of(
                collapse(), measured(entropy_ratio=ratio_SLA, max_logit=np.full(ratio_SLA.shape, 100.0))
            )
        ] == expected


def test_entropy_that_is_not_a_number_is_a_collapse_and_spoils_no_median() -> None:
    ratio_SLA = np.full((12, 1, 2), 0.9)
    ratio_SLA[6, 0, 1] = math.nan
    ratio_SLA[8] = 0.5
    alarms = alarms_of(collapse(), measured(entropy_ratio=ratio_SLA, max_logit=np.full(ratio_SLA.shape, 100.0)))
    assert [(alarm.step, alarm.where["head"]) for alarm in alarms] == [(70, 1), (90, 0)]


def test_the_early_warning_comes_before_the_collapse_and_names_the_layer() -> None:
    seen = with_logits(falling(20, 0.06), 200.0)
    few = EntropyCollapse(EntropyConfig(window=9, heads=0.2))
    warned, collapsed = first(alarms_of(warning(), seen)), first(alarms_of(few, seen))
    assert (warned.severity, warned.where, warned.step) == ("warning", {"layer": 2}, 230)
    assert "layer 2 fell from" in warned.reason
    assert collapsed.step > warned.step and collapsed.where["layer"] == 2


@pytest.mark.parametrize(("logit", "fires"), [(20.0, False), (50.0, False), (51.0, True), (math.nan, True)])
def test_the_early_warning_needs_a_large_logit_in_the_layer_that_falls(logit: float, fires: bool) -> None:
    ratio_SLA = falling(20, 0.06)
    logit_SLA = np.full(ratio_SLA.shape, 10.0)
    logit_SLA[:, 2, 3] = logit
    assert bool(alarms_of(warning(), measured(entropy_ratio=ratio_SLA, max_logit=logit_SLA))) is fires
    elsewhere = np.roll(logit_SLA, 1, axis=1)
    assert alarms_of(warning(), measured(entropy_ratio=ratio_SLA, max_logit=elsewhere)) == []


def test_the_early_warning_is_silent_about_a_fall_that_is_over() -> None:
    ratio_SLA = np.full((20, L, A), 0.9)
    ratio_SLA[10:, 1] = 0.3
    ratio_SLA[15:, 1] = 0.8
    assert alarms_of(warning(), with_logits(ratio_SLA, 200.0)) == []


@pytest.mark.parametrize(("rate", "fires"), [(0.02, False), (0.035, False), (0.06, True), (0.2, True)])
def test_how_fast_a_fall_must_be(rate: float, fires: bool) -> None:
    assert bool(alarms_of(warning(), with_logits(falling(5, rate), 200.0))) is fires


def test_the_slope_counts_steps_and_not_measurements() -> None:
    ratio_SLA = falling(5, 0.06)[:9]
    assert alarms_of(warning(), with_logits(ratio_SLA, 200.0))
    assert alarms_of(warning(), with_logits(ratio_SLA, 200.0, interval=1000)) == []


def test_the_early_warning_of_a_layer_that_is_not_a_number_is_left_to_the_collapse() -> None:
    ratio_SLA = falling(20, 0.06)
    ratio_SLA[:, 0] = math.nan
    assert first(alarms_of(warning(), with_logits(ratio_SLA, 200.0))).where == {"layer": 2}


def logit_run(*values: float, shape: tuple[int, int] = (L, A)) -> np.ndarray:
    logit_SLA = np.random.default_rng(0).uniform(1, 900, (len(values), *shape))
    logit_SLA[:, shape[0] // 2, shape[1] // 4] = values
    return logit_SLA


@pytest.mark.parametrize(
    ("value", "severity"),
    [
        (900.0, None),
        (1000.0, None),
        (1001.0, "alarm"),
        (1e4, "alarm"),
        (1.1e4, "fatal"),
        (math.inf, "fatal"),
        (math.nan, "fatal"),
    ],
)
def test_a_logit_is_an_alarm_over_a_thousand_and_fatal_over_ten_thousand(value: float, severity: str | None) -> None:
    alarms = alarms_of(logits(), measured(max_logit=logit_run(10.0, value, 10.0)))
    assert [(a.step, a.severity, a.where) for a in alarms] == ([(20, severity, WHERE)] if severity else [])


@pytest.mark.parametrize("shape", [(1, 1), (1, 4), (3, 1)])
def test_any_shape_of_model_will_do(shape: tuple[int, int]) -> None:
    where = {"layer": shape[0] // 2, "head": shape[1] // 4}
    (logit,) = alarms_of(logits(), measured(max_logit=logit_run(10.0, 2e3, shape=shape)))
    assert logit.where == where
    ratio_SLA = np.full((8, *shape), 0.9)
    ratio_SLA[5:] = 0.02
    alarm = first(alarms_of(collapse(), measured(entropy_ratio=ratio_SLA, max_logit=np.full(ratio_SLA.shape, 100.0))))
    assert alarm.step == 60 and alarm.where == {"layer": 0, "head": 0}
    ratio_SLA[:, -1] = np.array([0.9, 0.9, 0.9, 0.7, 0.5, 0.3, 0.1, 0.05])[:, None]
    assert first(alarms_of(warning(), with_logits(ratio_SLA, 200.0))).where == {"layer": shape[0] - 1}


def cosines(length: int, collapsed: slice, value: float = 0.999, layers: int = 4) -> np.ndarray:
    cosine_SL = np.random.default_rng(0).uniform(0.1, 0.95, (length, layers))
    cosine_SL[collapsed, layers // 2 :] = value
    return cosine_SL


def test_tokens_that_stay_alike_are_a_collapse_in_the_first_layer_that_has_them() -> None:
    alarms = alarms_of(rank(), measured(token_cosine=cosines(20, slice(8, None))))
    lasts = RankCollapseConfig().steps // 10
    assert [alarm.step for alarm in alarms] == list(range(90 + 10 * lasts, 201, 10))
    assert (alarms[0].severity, alarms[0].where) == ("alarm", {"layer": 2}) and "1 more layer" in alarms[0].reason


def test_tokens_that_are_alike_for_a_while_or_not_quite_are_no_collapse() -> None:
    assert alarms_of(rank(), measured(token_cosine=cosines(30, slice(0, 5)))) == []
    assert alarms_of(rank(), measured(token_cosine=cosines(30, slice(0, 30), 0.985))) == []
    assert alarms_of(rank(), measured(token_cosine=cosines(30, slice(0, 30), math.nan))) == []
    one_layer = alarms_of(rank(), measured(token_cosine=cosines(12, slice(0, 12), layers=1)))
    assert one_layer and one_layer[0].where == {"layer": 0}


@pytest.mark.parametrize("build", [collapse, warning, logits, rank])
def test_steps_without_the_arrays_are_passed_over(build: type) -> None:
    assert alarms_of(build(), steps([2.0] * 20)) == []
    assert alarms_of(build(), measured(something_else=np.full((20, L, A), math.nan))) == []


def test_a_resumed_run_raises_the_same_alarms() -> None:
    ratio_SLA = falling(20, 0.06)
    ratio_SLA[12, 3, 3] = math.nan
    seen = with_logits(ratio_SLA, 200.0)
    few = EntropyConfig(window=7, heads=0.2)
    assert_same_after_a_resume(lambda: EntropyCollapse(few), seen)
    assert_same_after_a_resume(lambda: EarlyWarning(few), seen)
    assert_same_after_a_resume(logits, measured(max_logit=logit_run(10.0, 2e3, math.nan, 10.0, 5e4)))
    assert_same_after_a_resume(rank, measured(token_cosine=cosines(20, slice(8, None))))
