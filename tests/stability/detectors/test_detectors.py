"""All detectors of a run together: what is told again, and when."""

import json
import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from configs.stability import DetectorsConfig
from stability.alarms import Alarm, Severity
from stability.detectors import Detector, Detectors, Observation, build_detectors

pytestmark = pytest.mark.filterwarnings("error")
CONFIG = DetectorsConfig(cooldown=10)


class Says(Detector):
    """Raises the alarms that it is told to."""

    def __init__(self, name: str, plan: dict[int, tuple[Severity, dict[str, int | str]]]) -> None:
        self.name, self._plan = name, plan

    def observe(self, seen: Observation) -> Iterator[Alarm]:
        if seen.step in self._plan:
            severity, where = self._plan[seen.step]
            yield Alarm(self.name, seen.step, severity, "because", 1.0, 0.0, where)

    def state(self) -> dict[str, Any]:
        return {}

    def load(self, state: dict[str, Any]) -> None:
        pass


def told(*detectors: Detector, steps: int = 40) -> list[int]:
    watch = Detectors(CONFIG, detectors)
    return [alarm.step for step in range(1, steps + 1) for alarm in watch.observe(Observation(step, 2.0, 1.0))]


def test_an_alarm_is_told_again_only_after_the_cooldown() -> None:
    assert told(Says("loss_spike", {step: ("alarm", {}) for step in range(5, 30)})) == [5, 15, 25]


def test_what_is_more_severe_is_told_at_once_and_what_is_less_is_not() -> None:
    warned: dict[int, Severity] = {5: "warning", 6: "alarm", 7: "warning", 8: "fatal"}
    later: dict[int, Severity] = {9: "alarm", 17: "alarm", 18: "alarm"}
    plan = {step: (severity, {}) for step, severity in (warned | later).items()}
    assert told(Says("logit_explosion", plan)) == [5, 6, 8, 18]  # type: ignore[arg-type]


def test_detectors_do_not_silence_each_other() -> None:
    loss, norm = Says("loss_spike", {5: ("alarm", {})}), Says("grad_spike", {5: ("alarm", {}), 6: ("alarm", {})})
    assert told(loss, norm) == [5, 5]


def test_two_matrices_are_two_pieces_of_news_and_the_lowest_head_of_the_day_is_not() -> None:
    matrices = {step: ("alarm", {"matrix": f"m{step % 2}"}) for step in range(5, 12)}
    assert told(Says("gradient", matrices)) == [5, 6]  # type: ignore[arg-type]
    heads = {step: ("alarm", {"layer": step % 2, "head": 0}) for step in range(5, 12)}
    assert told(Says("entropy_collapse", heads)) == [5]  # type: ignore[arg-type]


def sick(length: int, seed: int = 0) -> list[Observation]:
    """A run that has everything, measured at every third step."""
    rng = np.random.default_rng(seed)
    loss, norm = rng.normal(2, 0.05, length), rng.lognormal(0, 0.2, length)
    loss[[90, 150]] += 3
    norm[[91, 151]] *= 50
    loss[120], norm[121] = math.nan, math.inf
    loss[170:] += 5
    run = []
    for step in range(1, length + 1):
        sickness = max(0.0, step - 100) / 50
        arrays = {
            "entropy_ratio": np.clip(0.95 - sickness + rng.normal(0, 0.01, (2, 2)), 0.01, 1),
            "max_logit": np.full((2, 2), 10 * math.exp(5 * sickness)),
            "token_cosine": np.full(2, min(0.999, 0.5 + sickness)),
            "matrix": np.array(["a", "b", "c"]),
            "grad_norm": rng.lognormal(0, 0.2, 3) * np.where([step in (60, 180), False, False], 1e3, 1.0),
            "head_grad": np.where([[step > 130, False], [False, False]], 0.0, rng.lognormal(0, 0.2, (2, 2))),
            "shard_rms": np.full((3, 2), 0.1) * np.where([[False, step > 141]] * 3, 1e9, 1.0),
        }
        run.append(
            Observation(
                step, float(loss[step - 1]), float(norm[step - 1]), step % 7 > 0, arrays if step % 3 == 0 else {}
            )
        )
    return run


def test_a_sick_run_hears_from_every_detector_and_goes_on_the_same_after_a_resume() -> None:
    run = sick(240)
    config = DetectorsConfig(cooldown=30)
    straight = Detectors(config)
    states, alarms = [], []
    for seen in run:
        states.append(json.dumps(straight.state()))
        alarms.append([repr(alarm) for alarm in straight.observe(seen)])
    everything = " ".join(text for texts in alarms for text in texts)
    for detector in build_detectors(config):
        assert f"detector='{detector.name}'" in everything, f"{detector.name} has nothing to say"
    for split in range(0, len(run), 11):
        resumed = Detectors(config)
        resumed.load(json.loads(states[split]))
        assert [[repr(alarm) for alarm in resumed.observe(seen)] for seen in run[split:]] == alarms[split:], split
        assert json.dumps(resumed.state()) == json.dumps(straight.state())


def test_a_state_is_a_copy() -> None:
    watch = Detectors(DetectorsConfig())
    run = sick(240)
    for seen in run[:100]:
        watch.observe(seen)
    state = watch.state()
    before = json.dumps(state)
    for seen in run[100:]:
        watch.observe(seen)
    assert json.dumps(state) == before


def test_a_detector_that_the_state_does_not_know_begins_anew() -> None:
    state = Detectors(CONFIG, [Says("another", {})]).state()
    watch = Detectors(CONFIG)
    watch.load(state)
    assert watch.observe(Observation(1, math.nan, 1.0))[0].detector == "non_finite"


@pytest.mark.parametrize("seed", range(10))
def test_a_healthy_run_of_500_steps_has_no_alarm(seed: int) -> None:
    rng = np.random.default_rng(seed)
    layers, heads, matrices, ranks = 4, 4, 13, 2
    watch = Detectors(DetectorsConfig())
    for step in range(1, 501):
        done = step / 500
        arrays = {
            "entropy_ratio": np.clip(0.98 - 0.23 * done + rng.normal(0, 0.01, (layers, heads)), 0, 1),
            "max_logit": rng.uniform(1, 5, (layers, heads)) * (1 + 10 * done),
            "token_cosine": rng.uniform(0.0, 0.8, layers),
            "matrix": np.array([f"m{k}" for k in range(matrices)]),
            "grad_norm": rng.lognormal(0, 0.5, matrices) * np.linspace(0.1, 3, matrices),
            "head_grad": rng.lognormal(0, 1.0, (layers, heads)),
            "shard_rms": 0.02 * (1 + 20 * done) * rng.lognormal(0, 0.05, (matrices, ranks)),
        }
        loss = 2.4 + 3.1 * math.exp(-step / 60) + rng.normal(0, 0.05)
        seen = Observation(step, loss, rng.lognormal(0, 0.5), arrays=arrays if step % 10 == 0 or step == 1 else {})
        assert watch.observe(seen) == []
