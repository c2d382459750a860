"""Which batches a run takes that went back, by following the batches that it took."""

import itertools
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from configs.errors import DataError
from stability.rewind import ROLLBACKS, Rewinds, Rollback

FAR = 700


class Run:
    """What a run that goes back now and then has: its rollbacks, the batches it gave up, and its checkpoints."""

    def __init__(self, interval: int) -> None:
        self.interval = interval
        self.rewinds = Rewinds()
        self.given_up: set[int] = set()
        self.step = 0
        self.checkpoints: dict[int, int] = {}  # step -> rollbacks behind the run when it was last there

    def train(self, steps: int) -> None:
        for _ in range(steps):
            self.step += 1
            if self.step % self.interval == 0:
                self.checkpoints[self.step] = len(self.rewinds)

    def roll_back(self, before: int, after: int) -> bool:
        """After the step just taken; False where there is no checkpoint to go back to."""
        spike = self.step - 1
        skip_from = max(0, spike - before)
        to = max((step for step in self.checkpoints if step <= skip_from), default=None)
        if to is None:
            return False
        skipped = spike + after + 1 - skip_from
        self.given_up |= {self.rewinds.batch(step) for step in range(skip_from, skip_from + skipped)}
        self.rewinds = self.rewinds.plus(Rollback(to, spike, skip_from, skipped, "spike")).completed()
        self.checkpoints = {step: behind for step, behind in self.checkpoints.items() if step <= to}
        self.checkpoints[to] = len(self.rewinds)
        self.step = to
        return True


ROLLBACKS_OF_A_RUN = st.lists(st.tuples(st.integers(1, 60), st.integers(0, 30), st.integers(0, 60)), max_size=6)


@given(st.integers(1, 25), ROLLBACKS_OF_A_RUN)
def test_what_was_skipped_is_never_taken_and_nothing_else_is_left_out(
    interval: int, events: list[tuple[int, int, int]]
) -> None:
    run = Run(interval)
    for steps, before, after in events:
        run.train(steps)
        earlier = [run.rewinds.batch(step) for step in range(FAR)]
        if run.roll_back(before, after):
            kept = run.step  # training goes on from here: what the checkpoint has seen stays as it is
            assert [run.rewinds.batch(step) for step in range(kept)] == earlier[:kept]
        batches = [run.rewinds.batch(step) for step in range(FAR)]
        assert all(a < b for a, b in itertools.pairwise(batches))
        assert run.given_up.isdisjoint(batches)
        assert set(range(batches[-1])) <= run.given_up | set(batches)


@given(st.integers(1, 25), ROLLBACKS_OF_A_RUN)
def test_a_run_that_goes_on_from_a_checkpoint_knows_the_rollbacks_behind_it(
    interval: int, events: list[tuple[int, int, int]]
) -> None:
    run = Run(interval)
    for steps, before, after in events:
        run.train(steps)
        run.roll_back(before, after)
        for step, behind in run.checkpoints.items():
            assert len(run.rewinds.known_to(step)) == behind
    if run.checkpoints:
        newest = run.rewinds.known_to(max(run.checkpoints))
        assert [newest.batch(step) for step in range(FAR)] == [run.rewinds.batch(step) for step in range(FAR)]


def test_a_run_that_never_went_back_takes_batch_after_batch() -> None:
    assert [Rewinds().batch(step) for step in range(5)] == [0, 1, 2, 3, 4]


def test_a_spike_before_the_first_one_skips_what_it_saw_and_not_what_the_first_left_out() -> None:
    first = Rollback(to=80, spike=100, skip_from=90, skipped=61, reason="a")  # batches 90 to 150
    second = Rollback(to=80, spike=95, skip_from=85, skipped=61, reason="b")  # batches 85 to 89 and 151 to 206
    rewinds = Rewinds([first, second])
    assert [rewinds.batch(step) for step in (84, 85, 86)] == [84, 207, 208]


def test_a_later_rollback_to_before_an_earlier_one_keeps_both() -> None:
    rewinds = Rewinds([Rollback(80, 100, 90, 20, "a"), Rollback(60, 82, 70, 20, "b")])
    assert [len(rewinds.known_to(step)) for step in (0, 59, 60, 80, 200)] == [0, 0, 2, 2, 2]
    one_above = Rewinds([Rollback(60, 82, 70, 20, "a"), Rollback(80, 100, 90, 20, "b")])
    assert [len(one_above.known_to(step)) for step in (59, 60, 79, 80)] == [0, 1, 1, 2]


def test_only_the_last_rollback_can_be_unfinished() -> None:
    rollback = Rollback(20, 40, 30, 15, "spike")
    assert Rewinds().unfinished is None
    begun = Rewinds().plus(rollback)
    assert begun.unfinished == rollback and begun.completed().unfinished is None
    assert begun.batch(30) == begun.completed().batch(30) == 45
    assert begun.completed().plus(rollback).unfinished == rollback
    assert len(begun.completed().plus(rollback)) == 2


def test_they_are_read_as_they_were_written(tmp_path: Path) -> None:
    assert len(Rewinds.read(tmp_path)) == 0
    begun = Rewinds([Rollback(20, 40, 30, 15, 'spike: "λ"', complete=True), Rollback(60, 90, 80, 61, "again")])
    begun.write(tmp_path)
    again = Rewinds.read(tmp_path)
    assert again.unfinished == Rollback(60, 90, 80, 61, "again")
    again.completed().write(tmp_path)
    third = Rewinds.read(tmp_path)
    assert third.unfinished is None and [third.batch(step) for step in range(200)] == [
        begun.batch(step) for step in range(200)
    ]
    assert [path.name for path in tmp_path.iterdir()] == [ROLLBACKS], "nothing else is left behind"


GOOD = [{"to": 20, "spike": 40, "skip_from": 30, "skipped": 15, "reason": "spike", "complete": True}]


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"[{",
        b"5",
        b'{"to": 1}',
        b'["to"]',
        b"\xff\xfe",
        json.dumps(GOOD)[:-9].encode(),
        json.dumps([GOOD[0] | {"to": "20"}]).encode(),
        json.dumps([GOOD[0] | {"skipped": 1.5}]).encode(),
        json.dumps([{key: value for key, value in GOOD[0].items() if key != "spike"}]).encode(),
    ],
)
def test_a_damaged_file_is_refused_in_one_line(tmp_path: Path, text: bytes) -> None:
    (tmp_path / ROLLBACKS).write_bytes(text)
    with pytest.raises(DataError) as refused:
        Rewinds.read(tmp_path)
    message = str(refused.value)
    assert "\n" not in message and message.startswith(f"{tmp_path / ROLLBACKS}: damaged")


def test_a_good_file_is_not_refused(tmp_path: Path) -> None:
    (tmp_path / ROLLBACKS).write_text(json.dumps(GOOD))
    rewinds = Rewinds.read(tmp_path)
    assert rewinds.entries == (Rollback(20, 40, 30, 15, "spike", complete=True),)
