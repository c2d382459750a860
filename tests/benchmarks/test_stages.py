"""Both sides of a sleeping stage's backward can be asked for alone, as torch's zero-bubble schedules do."""

import time

import pytest
import torch

from benchmarks.parallel_overheads.bubbles import Cell, measure
from benchmarks.parallel_overheads.stages import SleepingChunk
from parallel.bubble import StageTimes

TIMES = StageTimes(forward=0.01, backward_input=0.04, backward_weight=0.16)


@pytest.mark.parametrize(("sides", "least", "most"), [("input", 0.04, 0.15), ("weight", 0.16, 0.19), ("both", 0.2, 9)])
def test_each_side_takes_its_time(sides: str, least: float, most: float, monkeypatch: pytest.MonkeyPatch) -> None:
    asleep: list[float] = []
    monkeypatch.setattr(time, "sleep", asleep.append)  # the durations asked for: a busy machine wakes late
    chunk = SleepingChunk(1, 8, TIMES)
    x_BTD = torch.ones(1, 4, 8, requires_grad=True)
    y = chunk(x_BTD)
    assert asleep == [TIMES.forward]
    asleep.clear()
    wanted = {"input": [x_BTD], "weight": [chunk.weight], "both": [x_BTD, chunk.weight]}[sides]
    gradients = torch.autograd.grad(y.sum(), wanted)
    assert least <= sum(asleep) <= most
    assert all(float(g.abs().sum()) > 0 for g in gradients)


@pytest.mark.slow
def test_a_measured_schedule_idles_at_least_as_long_as_theory_says() -> None:
    """Upwards a busy machine has no bound; downwards theory is one, but for the spread of the sleeps' lengths."""
    row = measure(Cell("interleaved_zero_bubble", 2, 4, 0.04), 2)
    assert row["measured_of_ideal"] > row["theory_of_ideal"]
    assert row["parts_ms"][0] > 19.9 and row["parts_ms"][1] > 19.9 and row["parts_ms"][2] > 19.9
