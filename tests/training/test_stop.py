"""Asked to stop: all ranks leave after the same step, saved, and the next run ends as one that was never stopped."""

import threading
from pathlib import Path
from unittest import mock

import pytest
import torch.distributed as dist

from configs.schema import Config
from monitoring.recorder import read_events, read_metrics, read_summary
from tests.distributed import spawn
from tests.training.checkpoint.test_saver import SHORT, assert_same_bits, assert_same_lines
from tests.training.test_run import tiny
from training.checkpoint import store
from training.run import train
from training.stop import Stop


class StopAt(Stop):
    """Requested in one rank while it works on an update."""

    def __init__(self, step: int, rank: int) -> None:
        self._at, self._rank = step, rank
        super().__init__()

    @property
    def requested(self) -> bool:
        if self.step == self._at and dist.get_rank() == self._rank:
            self.request("SIGUSR2", 60.0)
        return super().requested


def stopped(cfg: Config, step: int, rank: int) -> tuple[str, int]:
    summary = train(cfg, StopAt(step, rank))
    return summary.status, summary.steps


@pytest.mark.parametrize(("world_size", "layout", "rank"), [(1, [], 0), (4, ["parallel.tp=2", "parallel.pp=2"], 3)])
def test_a_stopped_run_goes_on_to_the_same_end(
    stdlib_bytes: Path, tmp_path: Path, world_size: int, layout: list[str], rank: int
) -> None:
    overrides = [*layout, *SHORT, "training.steps=12"]
    through = tiny(stdlib_bytes, tmp_path / "through", world_size, *overrides)
    cut = tiny(stdlib_bytes, tmp_path / "cut", world_size, *overrides)
    spawn(world_size, train, through)
    assert spawn(world_size, stopped, cut, 5, rank) == [("stopped", 5)] * world_size
    assert len(read_metrics(cut.run_dir)) == 5
    assert read_summary(cut.run_dir) is None, "it goes on: no end is written"
    (event,) = [event for event in read_events(cut.run_dir) if event["kind"] == "stop"]
    assert (event["step"], event["reason"]) == (5, "SIGUSR2" if rank == 0 else "another rank was asked to stop")
    spawn(world_size, train, cut)
    assert_same_lines(cut, through)
    assert_same_bits(cut, through)


def test_a_run_without_periodic_checkpoints_is_saved_when_it_is_stopped(stdlib_bytes: Path, tmp_path: Path) -> None:
    overrides = ["training.steps=8", "monitoring.interval=2"]
    through = tiny(stdlib_bytes, tmp_path / "through", 2, "parallel.tp=2", *overrides)
    cut = tiny(stdlib_bytes, tmp_path / "cut", 2, "parallel.tp=2", *overrides)
    spawn(2, train, through)
    assert spawn(2, stopped, cut, 3, 1) == [("stopped", 3)] * 2
    spawn(2, train, cut)
    assert_same_lines(cut, through)


def test_a_request_during_the_last_step_changes_nothing(stdlib_bytes: Path, tmp_path: Path) -> None:
    cfg = tiny(stdlib_bytes, tmp_path / "run", 1, *SHORT, "training.steps=4")
    assert spawn(1, stopped, cfg, 4, 0) == [("finished", 4)]
    assert read_summary(cfg.run_dir) is not None


def stopped_with_a_slow_disk(cfg: Config, slow: int) -> tuple[str, int]:
    """Saving step `slow` takes longer than the grace time of a stop at step 5."""
    stop = StopAt(5, 0)
    stop.request = lambda reason, grace_s=None: Stop.request(stop, reason, 0.3)  # type: ignore[method-assign]
    begin = store.begin

    def slowly(folder: Path, step: int) -> Path:
        if step == slow:
            threading.Event().wait(1000)
        return begin(folder, step)

    with mock.patch.object(store, "begin", slowly):
        summary = train(cfg, stop)
    return summary.status, summary.steps


@pytest.mark.parametrize(
    ("slow", "asynchronous", "saved"),
    [(5, "true", ["step-00000003"]), (3, "true", []), (5, "false", ["step-00000003"])],
    ids=["the save", "the one before", "training waits"],
)
def test_a_save_that_takes_longer_than_the_grace_time_is_given_up(
    stdlib_bytes: Path, tmp_path: Path, slow: int, asynchronous: str, saved: list[str]
) -> None:
    overrides = ["parallel.tp=2", *SHORT, "training.steps=8", f"checkpoint.asynchronous={asynchronous}"]
    through = tiny(stdlib_bytes, tmp_path / "through", 2, *overrides)
    cut = tiny(stdlib_bytes, tmp_path / "cut", 2, *overrides)
    spawn(2, train, through)
    assert spawn(2, stopped_with_a_slow_disk, cut, slow) == [("stopped", 5)] * 2
    assert [folder.name for folder in store.steps(cut.run_dir / "checkpoints")] == saved
    (event,) = [event for event in read_events(cut.run_dir) if event["kind"] == "checkpoint_failed"]
    assert (event["step"], event["reason"]) == (5, "not written within the grace time: given up")
    spawn(2, train, cut)
    assert_same_lines(cut, through)
    assert_same_bits(cut, through)
