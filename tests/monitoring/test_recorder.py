"""The run folder: what is written can be read back, also after a crash."""

import json
import math
import threading
from pathlib import Path

import numpy as np
import pytest

from configs.errors import DataError
from monitoring.recorder import (
    Recorder,
    append_event,
    last_metrics,
    read_events,
    read_metrics,
    read_signals,
    read_summary,
)


class Sink:
    """A tracker that remembers."""

    def __init__(self) -> None:
        self.logged: list[tuple[int, dict[str, float]]] = []
        self.statuses: list[str] = []
        self.resumed: list[int] = []
        self.rolled_back: list[int] = []
        self.reasons: list[str] = []

    def resume(self, step):
        self.resumed.append(step)

    def log(self, step, metrics):
        self.logged.append((step, dict(metrics)))

    def rollback(self, step):
        self.rolled_back.append(step)

    def close(self, status, reason=""):
        self.statuses.append(status)
        self.reasons.append(reason)


def strict(line: str) -> dict:
    """JSON as the standard has it: no NaN, no Infinity."""

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is not JSON")

    return json.loads(line, parse_constant=refuse)


def test_lines_are_valid_json_and_come_back(tmp_path: Path):
    sink = Sink()
    with Recorder(tmp_path / "run", sink) as recorder:
        recorder.log(1, loss=2.5, grad_norm=np.float32(0.5))
        recorder.log(2, loss=math.nan, grad_norm=math.inf, lr=-math.inf)
        assert (tmp_path / "run/metrics.jsonl").read_text().count("\n") == 2  # on disk while the run is alive
    lines = (tmp_path / "run/metrics.jsonl").read_text().splitlines()
    assert [strict(line) for line in lines] == [
        {"step": 1, "loss": 2.5, "grad_norm": 0.5},
        {"step": 2, "loss": "nan", "grad_norm": "inf", "lr": "-inf"},
    ]
    first, second = read_metrics(tmp_path / "run")
    assert first == {"step": 1, "loss": 2.5, "grad_norm": 0.5}
    assert math.isnan(second["loss"])
    assert (second["grad_norm"], second["lr"]) == (math.inf, -math.inf)
    assert [step for step, _ in sink.logged] == [1, 2]
    assert sink.statuses == ["finished"]


def test_a_torn_last_line_is_left_out_and_cut_off_when_the_run_goes_on(tmp_path: Path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1, "loss": 2.0}\n{"step": 2, "lo')
    assert [line["step"] for line in read_metrics(tmp_path)] == [1]
    with Recorder(tmp_path) as recorder:
        recorder.log(2, loss=1.5)
    assert [line["loss"] for line in read_metrics(tmp_path)] == [2.0, 1.5]


def test_a_step_written_again_replaces_the_first(tmp_path: Path):
    with Recorder(tmp_path) as recorder:
        for step, loss in ((1, 3.0), (2, 2.0), (3, 9.0), (2, 1.9)):
            recorder.log(step, loss=loss)
    assert [(line["step"], line["loss"]) for line in read_metrics(tmp_path)] == [(1, 3.0), (2, 1.9), (3, 9.0)]


def test_a_resumed_run_repeats_nothing(tmp_path: Path):
    with Recorder(tmp_path) as recorder:
        for step in range(1, 31):
            recorder.log(step, loss=1 / step)
            recorder.signals(step, entropy=[float(step)])
        recorder.event(25, "checkpoint", "written")
        recorder.summary({"status": "finished"})
    before = (tmp_path / "metrics.jsonl").read_bytes().splitlines(keepends=True)
    (tmp_path / "signals" / "step-00000031.tmp").touch()  # killed while it was written
    sink = Sink()
    with Recorder(tmp_path, sink) as recorder:
        recorder.resume(20)
        assert (tmp_path / "metrics.jsonl").read_bytes() == b"".join(before[:20])
        assert len(list((tmp_path / "signals").iterdir())) == 20
        assert read_signals(tmp_path, "entropy")[0].tolist() == list(range(1, 21))
        assert read_summary(tmp_path) is None  # it has not ended
        for step in range(21, 41):
            recorder.log(step, loss=2.0)
    assert [line["step"] for line in map(strict, (tmp_path / "metrics.jsonl").read_text().splitlines())] == list(
        range(1, 41)
    )
    assert [event["kind"] for event in read_events(tmp_path)] == ["checkpoint"]
    assert (sink.resumed, len(sink.logged)) == ([20], 20)


def test_a_rollback_cuts_lines_and_arrays_and_keeps_events(tmp_path: Path):
    sink = Sink()
    with Recorder(tmp_path, sink) as recorder:
        for step in range(1, 31):
            recorder.log(step, loss=1 / step)
            recorder.signals(step, entropy=[float(step)])
        recorder.event(30, "rollback", "to step 20")
        recorder.rollback(20)
        for step in range(21, 26):
            recorder.log(step, loss=2.0)
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == list(range(1, 26))
    assert [line["loss"] for line in lines[19:]] == [1 / 20] + [2.0] * 5
    assert read_signals(tmp_path, "entropy")[0].tolist() == list(range(1, 21))
    assert [event["kind"] for event in read_events(tmp_path)] == ["rollback"]
    assert (sink.rolled_back, sink.resumed, len(sink.logged)) == ([20], [], 35)


def test_each_event_is_handed_to_the_alerts(tmp_path: Path):
    told = []

    class Alerts:
        def notify(self, event):
            told.append(event)

        def close(self):
            told.append("closed")

    with Recorder(tmp_path, alerts=Alerts()) as recorder:
        recorder.event(3, "alarm", "entropy fell", where={"layer": 1})
    assert told == [*read_events(tmp_path), "closed"]


def test_resuming_after_the_last_line_cuts_nothing(tmp_path: Path):
    with Recorder(tmp_path) as recorder:
        recorder.log(1, loss=math.nan)
        recorder.resume(1)
        recorder.log(2, loss=1.0)
    assert [line["step"] for line in read_metrics(tmp_path)] == [1, 2]


def test_lines_that_a_power_failure_left_unreadable_do_not_stop_a_resumed_run(tmp_path: Path):
    (tmp_path / "metrics.jsonl").write_bytes(b'{"step": 1, "loss": 2.0}\n' + b"\0" * 40 + b'\n[]\n{"step": 3}\n\xff')
    with Recorder(tmp_path) as recorder:
        recorder.resume(2)
    assert (tmp_path / "metrics.jsonl").read_text() == '{"step": 1, "loss": 2.0}\n'
    (event,) = read_events(tmp_path)
    assert event["reason"] == "2 lines of metrics.jsonl were unreadable and are cut"


def test_last_line_of_a_long_record(tmp_path: Path):
    assert last_metrics(tmp_path) is None
    with Recorder(tmp_path) as recorder:
        for step in range(1, 1001):
            recorder.log(step, loss=1.0, grad_norm=1.0)
        assert last_metrics(tmp_path) == {"step": 1000, "loss": 1.0, "grad_norm": 1.0}


def test_signals_come_back_by_step(tmp_path: Path):
    first, second = np.random.default_rng(0).random((2, 4, 8))
    with Recorder(tmp_path) as recorder:
        recorder.signals(20, entropy=second, matrix=np.array(["layers.0.qkv.q", "head"]))
        recorder.signals(5, entropy=first)
    steps, entropy_SLA = read_signals(tmp_path, "entropy")
    assert steps.tolist() == [5, 20]
    assert entropy_SLA.dtype == np.float32
    np.testing.assert_allclose(entropy_SLA, np.stack([first, second]), rtol=1e-6)
    steps, names = read_signals(tmp_path, "matrix")
    assert steps.tolist() == [20]
    assert names.tolist() == [["layers.0.qkv.q", "head"]]
    assert read_signals(tmp_path, "never")[0].size == 0
    assert not list((tmp_path / "signals").glob("*.tmp"))


def test_events_of_several_threads_stay_whole(tmp_path: Path):
    def write(number: int) -> None:
        for step in range(50):
            append_event(tmp_path, step, "spike", f"thread {number}", value=math.inf)

    threads = [threading.Thread(target=write, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    events = read_events(tmp_path)
    assert len(events) == 200
    assert {event["kind"] for event in events} == {"spike"}
    assert all(event["value"] == math.inf and event["time"] > 0 for event in events)


def test_an_exception_closes_the_run_as_failed_once(tmp_path: Path):
    sink = Sink()
    recorder = Recorder(tmp_path, sink)
    with pytest.raises(ZeroDivisionError), recorder:
        recorder.log(1, loss=1 / 0)
    recorder.close("finished")
    assert (sink.statuses, sink.reasons) == (["failed"], ["ZeroDivisionError: division by zero"])
    (event,) = read_events(tmp_path)
    assert (event["kind"], event["reason"]) == ("failed", "ZeroDivisionError: division by zero")


def test_summary_says_that_the_run_ended(tmp_path: Path):
    recorder = Recorder(tmp_path)
    assert read_summary(tmp_path) is None
    recorder.summary({"status": "diverged", "val_loss": math.nan, "steps": np.int64(7)})
    summary = read_summary(tmp_path)
    assert summary is not None
    assert (summary["status"], summary["steps"]) == ("diverged", 7)
    assert math.isnan(summary["val_loss"])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["metrics.jsonl", "summary.json"]


@pytest.mark.parametrize(
    ("name", "read"), [("summary.json", read_summary), ("metrics.jsonl", read_metrics), ("events.jsonl", read_events)]
)
def test_a_damaged_file_is_named(tmp_path, name, read):
    (tmp_path / name).write_bytes(b'{"x\xff\n')
    with pytest.raises(DataError, match=rf"{name}: damaged: a line is not JSON; delete "):
        read(tmp_path)
