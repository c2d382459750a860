"""The run folder: what one run writes about itself, and the readers of the same files.

    config.yaml              the resolved configuration (written by the launcher)
    metrics.jsonl            one JSON object per logged step
    events.jsonl             one JSON object per event: step, kind, reason, details
    signals/step-00000020.npz  per-layer, per-head and per-matrix arrays of one step
    summary.json             written once, when the run has ended: its presence says that the run is complete
    stopped.json             written by a sweep before it ends a hopeless run: step, loss, rule, reason
    mlflow_run_id            the tracker's id of the run

JSON knows no NaN and no infinity: non-finite numbers are written as the strings "nan", "inf" and "-inf" and read back
as floats, so that every line is valid JSON and nothing is lost.
"""

import json
import math
import os
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Protocol, Self, TextIO

import numpy as np
from numpy.typing import ArrayLike, NDArray

from configs.atomic import write_atomically
from configs.errors import DataError

METRICS, EVENTS, SIGNALS, SUMMARY = "metrics.jsonl", "events.jsonl", "signals", "summary.json"
STOPPED = "stopped.json"
SPEEDS = ("tokens_per_s", "tflops_per_device", "mfu")
NON_FINITE = ("nan", "inf", "-inf")

Status = Literal["finished", "diverged", "stopped", "failed"]
Record = dict[str, Any]


class MetricSink(Protocol):
    """What the recorder asks of a tracker (`monitoring.tracker.Tracker`)."""

    def log(self, step: int, metrics: Mapping[str, float]) -> None: ...
    def resume(self, step: int) -> None: ...
    def rollback(self, step: int) -> None: ...
    def close(self, status: Status, reason: str = "") -> None: ...


class EventSink(Protocol):
    """What the recorder asks of alerts (`monitoring.alerts.Alerts`)."""

    def notify(self, event: Record) -> None: ...
    def close(self) -> None: ...


class Recorder:
    """Writes the run folder of one run; lives on the logging rank only.

    A folder that already holds lines is continued; a line torn by a crash is cut off first. Use it as a context
    manager: leaving it by an exception closes the run as `failed`.
    """

    def __init__(self, run_dir: Path, tracker: MetricSink | None = None, alerts: EventSink | None = None) -> None:
        run_dir.mkdir(parents=True, exist_ok=True)
        self.run_dir = run_dir
        self.tracker = tracker
        self.alerts = alerts
        _cut_torn_line(run_dir / METRICS)
        _cut_torn_line(run_dir / EVENTS)
        self._metrics = self._open_metrics()
        self._step = 0
        self._closed = False

    def resume(self, step: int) -> None:
        """Go on after `step`: lines and arrays of later steps are cut, the summary of an earlier end is taken away.

        Events stay: they happened. Lines of metrics.jsonl that a crash of the machine left unreadable are cut too, and
        an event says so. To be called before the first `log`.
        """
        self._cut(step)
        if self.tracker is not None:
            self.tracker.resume(step)

    def rollback(self, step: int) -> None:
        """Go back to `step` within the run: what was recorded of later steps is cut as by `resume`.

        The tracking store, which cannot take a point back, gets the steps trained anew as new points.
        """
        self._cut(step)
        if self.tracker is not None:
            self.tracker.rollback(step)

    def log(self, step: int, **metrics: float) -> None:
        """Append one line of numbers, e.g. `loss=`, `grad_norm=`, `tokens_per_s=`, and hand them to the tracker."""
        self._step = step
        self._metrics.write(json_line({"step": step, **metrics}))
        if self.tracker is not None:
            self.tracker.log(step, metrics)

    def event(self, step: int, kind: str, reason: str, **details: Any) -> None:
        """Append one event: something that happened once (divergence, resume, checkpoint) and why."""
        event = append_event(self.run_dir, step, kind, reason, **details)
        if self.alerts is not None:
            self.alerts.notify(event)

    def signals(self, step: int, **arrays: ArrayLike) -> None:
        """Write the arrays of one step, e.g. `entropy` (layers, heads) in nats, or `sigma` (matrices,) with `names`.

        Floats are stored in fp32.
        """
        path = self.run_dir / SIGNALS / f"step-{step:08d}.npz"
        path.parent.mkdir(exist_ok=True)
        compact = {name: _compact(np.asarray(array)) for name, array in arrays.items()}
        scratch = path.with_suffix(".tmp")
        with scratch.open("wb") as file:
            np.savez_compressed(file, **compact)  # type: ignore[arg-type]
        os.replace(scratch, path)

    def summary(self, summary: Mapping[str, Any]) -> None:
        """Write summary.json, all or nothing."""
        write_json(self.run_dir / SUMMARY, summary)

    def close(self, status: Status, reason: str = "") -> None:
        """End the run, saying why; the tracker sends what it still holds. Later calls do nothing."""
        if self._closed:
            return
        self._closed = True
        self._metrics.close()
        if status == "failed":
            self.event(self._step, "failed", reason or "ended by an exception")
        if self.tracker is not None:
            self.tracker.close(status, reason)
        if self.alerts is not None:
            self.alerts.close()

    def _cut(self, step: int) -> None:
        """Cut lines and arrays of later steps, and what says that the run has ended."""
        self._metrics.close()
        unreadable = _cut_after(self.run_dir / METRICS, step)
        self._metrics = self._open_metrics()
        for path in (self.run_dir / SIGNALS).glob("step-*"):
            if int(path.stem.removeprefix("step-")) > step:
                path.unlink()
        for name in (SUMMARY, STOPPED):
            (self.run_dir / name).unlink(missing_ok=True)
        if unreadable:
            self.event(step, "metrics_damaged", f"{unreadable} lines of {METRICS} were unreadable and are cut")

    def _open_metrics(self) -> TextIO:
        return (self.run_dir / METRICS).open("a", buffering=1, encoding="utf-8")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None:
            self.close("finished")
        else:
            self.close("failed", describe(error))


def append_event(run_dir: Path, step: int, kind: str, reason: str, **details: Any) -> Record:
    """Append one line to events.jsonl; one short write in append mode, so several threads and processes may do so."""
    event = {"step": step, "time": time.time(), "kind": kind, "reason": reason, **details}
    with (run_dir / EVENTS).open("ab", buffering=0) as file:
        file.write(json_line(event).encode())
    return event


def describe(error: BaseException) -> str:
    """An exception in one line."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0] if lines else 'no message'}"


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Write a JSON object by renaming a finished file into place: readers see the old one or the new one."""
    write_atomically(path, json.dumps(_encode(value), indent=2, allow_nan=False) + "\n")


def read_metrics(run_dir: Path) -> list[Record]:
    """The lines of metrics.jsonl, oldest first; a torn last line (the run is being written, or was killed) is left out.

    Where a step occurs twice (a run that went back to a checkpoint), the later line counts.
    """
    by_step = {record["step"]: record for record in _read_lines(run_dir / METRICS)}
    return [by_step[step] for step in sorted(by_step)]


def without_times(line: Record) -> Record:
    """What a line says of training, without how fast this machine was."""
    return {key: value for key, value in line.items() if key not in SPEEDS and not key.startswith("time/")}


def last_metrics(run_dir: Path) -> Record | None:
    """The newest whole line of metrics.jsonl, at the cost of reading its last 8 KB; None while there is none."""
    path = run_dir / METRICS
    if not path.exists():
        return None
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - 8192))
        lines = file.read().split(b"\n")[:-1]
    return _parse(lines[-1], path) if lines else None


def read_events(run_dir: Path) -> list[Record]:
    """The lines of events.jsonl, in the order in which they were written."""
    return list(_read_lines(run_dir / EVENTS))


def read_signals(run_dir: Path, name: str) -> tuple[NDArray[np.int64], NDArray[Any]]:
    """The steps (S,) at which the array `name` was written, and its values (S, ...); both empty if it never was."""
    steps, values = [], []
    for path in sorted((run_dir / SIGNALS).glob("step-*.npz")):
        with np.load(path, allow_pickle=False) as arrays:
            if name in arrays:
                steps.append(int(path.stem.removeprefix("step-")))
                values.append(arrays[name])
    return np.array(steps, dtype=np.int64), np.stack(values) if values else np.empty((0,))


def read_summary(run_dir: Path) -> Record | None:
    """summary.json, or None while the run has not ended."""
    return read_object(run_dir / SUMMARY)


def read_stopped(run_dir: Path) -> Record | None:
    """stopped.json, or None of a run that no sweep has ended early."""
    return read_object(run_dir / STOPPED)


def read_object(path: Path) -> Record | None:
    """A JSON object of a run's folder, None where there is none. Raises: DataError if it is damaged."""
    return _parse(path.read_bytes(), path) if path.exists() else None


def _read_lines(path: Path) -> Iterator[Record]:
    if not path.exists():
        return
    for line in path.read_bytes().split(b"\n")[:-1]:  # what follows the last newline is empty or torn
        yield _parse(line, path)


def _parse(text: bytes, path: Path) -> Record:
    """One JSON object of a run's file. Raises: DataError if it is not what a run writes."""
    record = parse_line(text)
    if record is None:
        raise DataError(f"{path}: damaged: a line is not JSON; delete {path.parent} and run it again")
    return record


def parse_line(text: bytes) -> Record | None:
    """What `json_line` wrote; None for anything else."""
    try:
        record = _decode(json.loads(text))
    except ValueError:
        return None
    return record if isinstance(record, dict) else None


def _cut_torn_line(path: Path) -> None:
    if not path.exists():
        return
    content = path.read_bytes()
    if content and not content.endswith(b"\n"):
        os.truncate(path, content.rfind(b"\n") + 1)


def _cut_after(path: Path, step: int) -> int:
    """Rewrite a file of JSON lines without those of later steps; returns how many more were no lines of a run."""
    kept, unreadable = [], 0
    for line in path.read_bytes().splitlines(keepends=True):
        try:
            if json.loads(line)["step"] <= step:
                kept.append(line.decode())
        except (ValueError, TypeError, KeyError):
            unreadable += 1
    write_atomically(path, "".join(kept))
    return unreadable


def json_line(record: Record) -> str:
    """A record as one line of JSON, newline included."""
    return json.dumps(_encode(record), allow_nan=False) + "\n"


def _encode(value: Any) -> Any:
    """Python and NumPy numbers (0-dim tensors too) as JSON values; non-finite floats as strings."""
    if isinstance(value, Mapping):
        return {key: _encode(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_encode(item) for item in value]
    if isinstance(value, Path):
        return str(value)
    if hasattr(value, "item"):
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value


def _decode(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _decode(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_decode(item) for item in value]
    return float(value) if value in NON_FINITE else value


def _compact(array: NDArray[Any]) -> NDArray[Any]:
    return array.astype(np.float32) if array.dtype == np.float64 else array
