"""Learning rate over a run."""

import pytest

from configs.schema import ScheduleConfig
from training.schedule import learning_rate


def rates(steps: int, **fields: object) -> list[float]:
    config = ScheduleConfig.model_validate(fields)
    return [learning_rate(step, 1.0, steps, config) for step in range(steps)]


def test_constant_without_warmup_is_constant() -> None:
    assert rates(5) == [1.0] * 5


def test_warmup_is_linear_and_reaches_the_peak_when_it_ends() -> None:
    assert rates(6, warmup_steps=3) == pytest.approx([0.25, 0.5, 0.75, 1, 1, 1])


def test_cosine_falls_from_the_peak_to_the_minimum() -> None:
    values = rates(11, kind="cosine", min_ratio=0.1)
    assert values[0] == 1.0 and values[-1] == pytest.approx(0.1) and values[5] == pytest.approx(0.55)
    assert values == sorted(values, reverse=True)


def test_wsd_stays_and_then_falls_linearly() -> None:
    values = rates(10, kind="wsd", decay_steps=4, min_ratio=0.0)
    assert values == pytest.approx([1, 1, 1, 1, 1, 1, 0.75, 0.5, 0.25, 0])
