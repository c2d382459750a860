"""What reruns say: of each pair of answers, and of losses that are near, high, or not finite."""

import math

import numpy as np
import pytest

from stability.record import Track
from stability.replay import SAME, SINGLE, Comparison, Rerun, compare, verdict
from tests.stability.records import record


def made(loss: float = 6.0, norm: float = 5.0):
    """A record whose alarm is at step 136, with these numbers there and calm ones before."""

    def fault(arrays) -> None:
        arrays["loss"][:], arrays["grad_norm"][:] = 3.0, 1.0
        arrays["loss"][35], arrays["grad_norm"][35] = loss, norm

    return record(fault)


def rerun(loss: float, norm: float, *, steps: int = 36, first: int = 121, layout: str = SAME, **fields: dict) -> Rerun:
    """Steps 121 to 100 + `steps`, with these numbers at the last."""
    at = np.arange(first, 101 + steps)
    losses, norms = np.full(len(at), 3.0), np.full(len(at), 1.0)
    losses[-1], norms[-1] = loss, norm
    return Rerun(layout, "step-00000120", Track(at, losses), Track(at, norms), **fields)


@pytest.mark.parametrize(
    ("recorded", "seen", "reproduced"),
    [
        ((6, 5), (6, 5), True),
        ((6, 5), (6.1, 5.5), True),
        ((6, 5), (4.8, 3.0), True),  # not equal, but a spike of the same kind
        ((6, 5), (3.1, 1.1), False),
        ((6, 5), (6, 1), False),
        ((3, 1), (3, 1), True),  # an alarm about something else
        ((3, 1), (9, 1), False),
        ((math.nan, math.inf), (math.nan, math.inf), True),
        ((3, math.inf), (3, math.inf), True),
        ((math.nan, math.inf), (3, 1), False),
        ((6, 5), (math.nan, math.inf), False),
    ],
)
def test_reproduced(recorded, seen, reproduced) -> None:
    found = compare(made(*recorded), rerun(*seen))
    assert found.reproduced == reproduced
    assert found.recorded == pytest.approx(recorded, nan_ok=True) and found.seen == pytest.approx(seen, nan_ok=True)


def test_a_rerun_that_ends_early_reproduces_nothing() -> None:
    found = compare(made(), rerun(6, 5, steps=33))
    assert not found.reproduced and math.isnan(found.seen[0])


def test_the_first_step_that_differs() -> None:
    assert compare(made(), rerun(6, 5)).differs_at is None
    assert compare(made(math.nan, math.inf), rerun(math.nan, math.inf)).differs_at is None
    other = rerun(6, 5)
    other.loss.values[9] += 0.1
    assert compare(made(), other).differs_at == 130


def answer(reproduced: bool, layout: str) -> Comparison:
    return Comparison(rerun(6, 5, layout=layout), reproduced, (6, 5), (6, 5), None)


@pytest.mark.parametrize(
    ("same", "single", "words"),
    [
        (True, True, "the model or the data are unstable"),
        (True, False, "a bug of the parallelism"),
        (False, False, "the hardware of the recorded run"),
        (False, True, "does not repeat itself"),
    ],
)
def test_two_reruns_tell_the_cause(same, single, words) -> None:
    assert words in verdict(answer(same, SAME), answer(single, SINGLE), layout_is_single=False)


def test_one_rerun_tells_half() -> None:
    assert verdict(answer(True, SINGLE), None, layout_is_single=True).startswith("Reproduced: the model or the data")
    assert "suspect the hardware" in verdict(answer(False, SINGLE), None, layout_is_single=True)
    told = verdict(None, answer(False, SINGLE), layout_is_single=False)
    assert told == "Not reproduced in one process; what that means, a rerun in the run's own layout would tell too."


def test_the_worst_sample() -> None:
    assert rerun(6, 5).worst_sample() is None
    assert rerun(6, 5, sample_losses={3: 2.0, 4: 9.0, 5: 1.0}).worst_sample() == (4, 9.0)
    worst = rerun(6, 5, sample_losses={3: 2.0, 4: math.nan, 5: 99.0}).worst_sample()
    assert worst is not None and worst[0] == 4
