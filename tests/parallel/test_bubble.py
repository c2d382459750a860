"""The simulated schedules against closed forms, against sums by hand, and their lists against those torch runs."""

import time
from types import SimpleNamespace
from typing import Any

import pytest
import torch.nn as nn

from parallel.bubble import StageTimes, bubble_fraction, rank_actions, step_time
from parallel.pipeline import SCHEDULES

EVEN = StageTimes(forward=1.0, backward_input=1.0, backward_weight=1.0)
UNEVEN = [EVEN, StageTimes(1.0, 1.4, 0.9), StageTimes(2.0, 1.5, 1.5), StageTimes(1.0, 2.0, 0.5)]
CHUNKS = {"gpipe": 1, "1f1b": 1, "interleaved_1f1b": 2, "interleaved_zero_bubble": 2, "zbv": 2}


@pytest.mark.parametrize("times", UNEVEN, ids=str)
@pytest.mark.parametrize(("pp", "micro_batches"), [(2, 2), (2, 8), (4, 4), (4, 16), (8, 64)])
def test_closed_forms(pp: int, micro_batches: int, times: StageTimes) -> None:
    m = micro_batches
    for schedule in ("gpipe", "1f1b"):
        assert bubble_fraction(schedule, pp, 1, m, times) == pytest.approx((pp - 1) / (m + pp - 1))
    for v in (2, 3):
        assert bubble_fraction("interleaved_1f1b", pp, v, m, times) == pytest.approx((pp - 1) / (v * m + pp - 1))
        # Qi et al. 2023, table 2: the bubble of ZB-H1.
        idle = step_time("interleaved_zero_bubble", pp, v, m, times) - v * m * times.total
        expected = (pp - 1) * (times.forward + times.backward_input - times.backward_weight)
        assert idle == pytest.approx(expected) or m < 2 * pp  # too few to fill the start with weight gradients


@pytest.mark.parametrize("pp", [2, 4, 8])
def test_the_v_schedule_only_fills_and_drains_where_its_parts_take_the_same(pp: int) -> None:
    for micro_batches in (2 * pp - 1, 2 * pp, 8 * pp):
        idle = step_time("zbv", pp, 2, micro_batches, EVEN) - 2 * micro_batches * EVEN.total
        assert idle == pytest.approx((pp - 1) * EVEN.forward)


def test_sending_by_hand() -> None:
    times = StageTimes(forward=2.0, backward_input=3.0, backward_weight=1.0, send=0.5)
    # One micro-batch goes there and back: two forwards, two whole backwards, two sends.
    assert step_time("gpipe", 2, 1, 1, times) == pytest.approx(2 * (2 + 4) + 2 * 0.5)
    # Rank 1 works from 2.5 on without a break: F B F B; rank 0 hears of the second gradient half a second later.
    assert step_time("1f1b", 2, 1, 2, times) == pytest.approx(2.5 + 2 * (2 + 4) + 0.5 + 4)
    # Stages 0 and 3 are rank 0's, 1 and 2 rank 1's: two sends there, none at the turn, two back. Rank 1 takes the
    # weights of stage 2 before the input of stage 1, and the weights of stage 0 come last.
    assert step_time("zbv", 2, 2, 1, times) == pytest.approx(4 * (2 + 3) + 2 * 1 + 4 * 0.5)


def test_latency_hurts_1f1b_where_gpipe_hides_it() -> None:
    """1F1B has few micro-batches under way and waits for their round trips; GPipe pays for one way there and back."""
    times, late = StageTimes(1.0, 1.0, 1.0), StageTimes(1.0, 1.0, 1.0, send=0.5)
    pp, m = 4, 32
    assert step_time("gpipe", pp, 1, m, late) - step_time("gpipe", pp, 1, m, times) == pytest.approx(2 * 3 * 0.5)
    assert step_time("1f1b", pp, 1, m, late) - step_time("1f1b", pp, 1, m, times) > 2 * 3 * 0.5 + 8


def test_one_rank_does_not_idle() -> None:
    assert bubble_fraction("1f1b", 1, 1, 8, EVEN) == 0


@pytest.mark.parametrize("schedule", ["interleaved_1f1b", "interleaved_zero_bubble", "zbv"])
@pytest.mark.parametrize(("pp", "micro_batches"), [(2, 2), (2, 6), (4, 3), (4, 8), (4, 10)])
def test_the_lists_are_those_of_torch(schedule: str, pp: int, micro_batches: int) -> None:
    stages: Any = [
        SimpleNamespace(num_stages=2 * pp, group_size=pp, group_rank=0, stage_index=i, submod=nn.Identity())
        for i in range(2)
    ]
    theirs = SCHEDULES[schedule](stages, micro_batches, loss_fn=None).pipeline_order
    ours = rank_actions(schedule, pp, CHUNKS[schedule], micro_batches)
    for rank in range(pp):
        expected = [f"{stage}{kind}{micro_batch}" for kind, stage, micro_batch in ours[rank]]
        assert [str(action) for action in theirs[rank] if action is not None] == expected


@pytest.mark.parametrize("schedule", CHUNKS)
def test_everything_is_done_once(schedule: str) -> None:
    pp, m, v = 4, 8, CHUNKS[schedule]
    for actions in rank_actions(schedule, pp, v, m):
        assert len(set(actions)) == len(actions)
        kinds = [kind for kind, _, _ in actions]
        assert kinds.count("F") == m * v
        assert kinds.count("B") + kinds.count("I") == m * v
        assert kinds.count("W") == kinds.count("I")


def test_a_large_job_is_answered_at_once() -> None:
    start = time.process_time()
    assert bubble_fraction("zbv", 64, 2, 512, EVEN) == pytest.approx(63 / (3 * 2 * 512 + 63))
    assert time.process_time() - start < 5
