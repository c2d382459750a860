"""The record of a run read while it grows: nothing twice, nothing torn, nothing of what the run took back."""

import json
import os
from pathlib import Path

import numpy as np
import pytest

from monitoring.history import History
from monitoring.recorder import Recorder, append_event, read_metrics


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    return tmp_path / "run"


def losses(history: History) -> list[tuple[int, float]]:
    steps, values = history.metric("loss")
    return list(zip(steps.tolist(), values.tolist(), strict=True))


def test_a_folder_that_is_not_there_has_an_empty_history(run_dir):
    history = History(run_dir)
    history.update()
    assert losses(history) == [] and history.events == [] and history.last_step == 0
    assert history.last("loss") is None and history.signal("entropy_ratio")[0].size == 0


def test_each_line_is_read_once_as_the_file_grows(run_dir):
    history = History(run_dir)
    with Recorder(run_dir) as recorder:
        for step in range(1, 6):
            recorder.log(step, loss=float(step), **({"val_loss": 9.0} if step == 3 else {}))
            recorder.event(step, "checkpoint", f"step {step}")
            history.update()
            history.update()
            assert losses(history) == [(k, float(k)) for k in range(1, step + 1)]
            assert [event["step"] for event in history.events] == list(range(1, step + 1))
    assert history.metric("val_loss")[0].tolist() == [3] and history.last("val_loss") == 9.0
    assert history.unreadable == 0


def test_a_torn_line_waits_until_it_is_whole(run_dir):
    run_dir.mkdir()
    history, path = History(run_dir), run_dir / "metrics.jsonl"
    path.write_text('{"step": 1, "loss": 5.0}\n{"step": 2, "lo')
    history.update()
    assert losses(history) == [(1, 5.0)]
    with path.open("a") as file:
        file.write('ss": 4.0}\n')
    history.update()
    assert losses(history) == [(1, 5.0), (2, 4.0)] and history.unreadable == 0


def test_numbers_that_are_not_finite_and_damaged_lines(run_dir):
    run_dir.mkdir()
    (run_dir / "metrics.jsonl").write_text('{"step": 1, "loss": "nan"}\ngarbage\n[1]\n{"step": 2, "loss": "-inf"}\n')
    history = History(run_dir)
    history.update()
    assert np.isnan(history.metric("loss")[1][0]) and history.metric("loss")[1][1] == -np.inf
    assert history.unreadable == 2


def test_a_run_that_goes_back_is_forgotten_from_there(run_dir):
    history = History(run_dir)
    with Recorder(run_dir) as recorder:
        for step in range(1, 11):
            recorder.log(step, loss=float(step))
            recorder.signals(step, entropy_ratio=np.full((2, 2), step / 10))
        history.update()
        recorder.resume(4)  # rewrites metrics.jsonl and deletes the later arrays
        recorder.log(5, loss=50.0)
        recorder.signals(5, entropy_ratio=np.full((2, 2), 0.9))
        history.update()
    assert losses(history) == [(1, 1.0), (2, 2.0), (3, 3.0), (4, 4.0), (5, 50.0)]
    steps, values = history.signal("entropy_ratio")
    assert steps.tolist() == [1, 2, 3, 4, 5] and values[-1, 0, 0] == pytest.approx(0.9)


def test_a_step_that_comes_again_in_the_same_file_counts_once_as_the_later_one(run_dir):
    run_dir.mkdir()
    lines = [{"step": step, "loss": loss} for step, loss in ((1, 1.0), (2, 2.0), (3, 3.0), (2, 20.0))]
    (run_dir / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    history = History(run_dir)
    history.update()
    assert losses(history) == [(1, 1.0), (2, 20.0)]


def test_a_run_deleted_and_begun_anew(run_dir):
    run_dir.mkdir()
    history = History(run_dir)
    for value in (1.0, 2.0):
        with Recorder(run_dir) as recorder:
            recorder.log(1, loss=value)
            recorder.event(1, "resume", "x")
        history.update()
        assert losses(history) == [(1, value)] and len(history.events) == 1
        for path in run_dir.iterdir():
            path.unlink()
        history.update()
        assert losses(history) == [] and history.events == []


def test_it_agrees_with_the_reader_of_whole_files(run_dir):
    with Recorder(run_dir) as recorder:
        for step in range(1, 50):
            recorder.log(step, loss=1 / step)
    history = History(run_dir)
    history.update()
    assert losses(history) == [(record["step"], record["loss"]) for record in read_metrics(run_dir)]


def test_arrays_that_cannot_be_read_are_counted_and_left_out(run_dir):
    with Recorder(run_dir) as recorder:
        for step in (5, 10):
            recorder.signals(step, entropy_ratio=np.ones((1, 2)), sigma=np.ones(2), matrix=np.array(["a", "b"]))
    (run_dir / "signals/step-00000005.npz").write_bytes(b"PK\x03\x04 torn")
    (run_dir / "signals/notes.npz").write_bytes(b"")
    history = History(run_dir)
    history.update()
    assert history.signal("entropy_ratio")[0].tolist() == [10]
    assert history.matrices == ["a", "b"] and history.unreadable == 1


def test_arrays_are_read_once_and_again_only_when_written_again(run_dir):
    history = History(run_dir)
    with Recorder(run_dir) as recorder:
        recorder.signals(5, entropy_ratio=np.ones((1, 2)))
        history.update()
        before = history.measurements
        history.update()
        assert history.measurements == before > 0
        recorder.signals(5, entropy_ratio=np.zeros((1, 2)))
    path = run_dir / "signals/step-00000005.npz"
    os.utime(path, ns=(0, path.stat().st_mtime_ns + 1))  # whatever the clock's resolution
    history.update()
    assert history.signal("entropy_ratio")[1].max() == 0 and history.measurements > before


def test_measurements_of_another_shape_than_the_newest_are_left_out(run_dir):
    with Recorder(run_dir) as recorder:
        recorder.signals(5, entropy_ratio=np.ones((1, 2)))
        recorder.signals(10, entropy_ratio=np.ones((3, 2)))
    history = History(run_dir)
    history.update()
    assert history.signal("entropy_ratio")[0].tolist() == [10]


def test_nothing_is_written(run_dir):
    with Recorder(run_dir) as recorder:
        recorder.log(1, loss=1.0)
    append_event(run_dir, 1, "stop", "why")
    before = {path: path.stat().st_mtime_ns for path in run_dir.rglob("*")}
    History(run_dir).update()
    assert {path: path.stat().st_mtime_ns for path in run_dir.rglob("*")} == before
