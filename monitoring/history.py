"""A run's record as it grows: each `History.update` reads what was written since the last one, and nothing else.

For readers that look while the run writes (`steadytrain watch`) and for its pictures. Nothing is written.
Letters: S measured steps, L layers, A heads, M matrices.
"""

import json
import os
import zipfile
from array import array
from bisect import bisect_left
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from monitoring.recorder import EVENTS, METRICS, SIGNALS, Record

KEPT = ("entropy_ratio", "max_logit", "token_cosine", "sigma", "gamma")
"""The arrays of a measured step that are kept, where it has them."""

Steps = NDArray[np.int64]
Values = NDArray[np.float64]


class History:
    """All metrics, all events and the `KEPT` arrays of one run folder, as of the last `update`.

    A folder that lacks files, or does not exist yet, has an empty history. `unreadable` counts what is damaged: lines
    that are no JSON, arrays that cannot be read. They are left out.
    """

    def __init__(self, run_dir: Path) -> None:
        self.run_dir = run_dir
        self.events: list[Record] = []
        self.matrices: list[str] = []
        """Names of the M matrices of the newest measurement."""
        self.measurements = 0
        """Changes whenever arrays came or went."""
        self.last_step = 0
        """Updates done, as far as the metrics tell."""
        self._columns: dict[str, _Column] = {}
        self._arrays: dict[int, dict[str, NDArray[Any]]] = {}
        self._read: dict[int, int] = {}  # step of an array file -> when it was written, ns
        self._bad_files: set[int] = set()
        self._tails = {METRICS: Tail(run_dir / METRICS), EVENTS: Tail(run_dir / EVENTS, texts=("kind", "reason"))}

    @property
    def unreadable(self) -> int:
        return len(self._bad_files) + sum(tail.unreadable for tail in self._tails.values())

    def update(self) -> None:
        """Read what is new. Where the run went back to an earlier step, what came after that step is forgotten."""
        metrics = self._tails[METRICS]
        for record in metrics:
            self._add(record)
        if metrics.began_again:
            self._columns, self.last_step = {}, 0
            for record in metrics:
                self._add(record)
        events = self._tails[EVENTS]
        self.events += events
        if events.began_again:
            self.events = list(events)
        self._read_arrays()

    def metric(self, name: str) -> tuple[Steps, Values]:
        """The steps (S,) that have the metric `name`, ascending, and its values (S,)."""
        column = self._columns.get(name)
        if column is None:
            return np.empty(0, np.int64), np.empty(0)
        return np.array(column.steps, np.int64), np.array(column.values)

    def last(self, name: str) -> float | None:
        """The newest value of a metric."""
        column = self._columns.get(name)
        return column.values[-1] if column is not None and column.values else None

    def signal(self, name: str) -> tuple[Steps, Values]:
        """The measured steps (S,) that have the array `name`, ascending, and its values (S, ...).

        Measurements of another shape than the newest (the run was continued with another model) are left out.
        """
        steps = [step for step in sorted(self._arrays) if name in self._arrays[step]]
        if not steps:
            return np.empty(0, np.int64), np.empty(0)
        shape = self._arrays[steps[-1]][name].shape
        steps = [step for step in steps if self._arrays[step][name].shape == shape]
        return np.array(steps, np.int64), np.stack([self._arrays[step][name] for step in steps]).astype(np.float64)

    def _add(self, record: Record) -> None:
        step = record["step"]
        if step <= self.last_step:
            for column in self._columns.values():
                column.cut(step)
        self.last_step = step
        for name, value in record.items():
            if name != "step":
                self._columns.setdefault(name, _Column()).append(step, float(value))

    def _read_arrays(self) -> None:
        found = {step: (path, written) for step, path, written in _array_files(self.run_dir / SIGNALS)}
        for step in [step for step in self._read if step not in found or found[step][1] != self._read[step]]:
            del self._read[step]
            self._arrays.pop(step, None)
            self._bad_files.discard(step)
            self.measurements += 1
        for step in sorted(found.keys() - self._read.keys()):
            path, self._read[step] = found[step]
            self.measurements += 1
            try:
                self._load(step, path)
            except FileNotFoundError:  # the run went back just now
                del self._read[step]
            except (OSError, ValueError, EOFError, zipfile.BadZipFile):
                self._bad_files.add(step)

    def _load(self, step: int, path: Path) -> None:
        with np.load(path, allow_pickle=False) as arrays:
            self._arrays[step] = {name: arrays[name] for name in KEPT if name in arrays}
            if "matrix" in arrays:
                self.matrices = arrays["matrix"].tolist()


class Tail:
    """The lines of a file of JSON objects, each once, as they are written; iterate again for those that came since.

    What follows the last newline is still being written and waits. After an iteration, `began_again` says that the file
    is another one than before (rewritten, shortened, deleted), so that what was read is void: iterate again.
    """

    def __init__(self, path: Path, texts: tuple[str, ...] = ()) -> None:
        """`texts`: what each line must have, besides a step."""
        self.began_again = False
        self.unreadable = 0
        self._path, self._texts = path, texts
        self._offset = 0
        self._inode: int | None = None

    def __iter__(self) -> Iterator[Record]:
        self.began_again = False
        try:
            file = self._path.open("rb")
        except FileNotFoundError:
            self._begin_again(None)
            return
        with file:
            status = os.fstat(file.fileno())
            replaced = status.st_ino != self._inode or status.st_size < self._offset
            if replaced and self._begin_again(status.st_ino):
                return
            file.seek(self._offset)
            for line in file:
                if not line.endswith(b"\n"):
                    return
                self._offset += len(line)
                record = self._parse(line)
                if record is not None:
                    yield record

    def _begin_again(self, inode: int | None) -> bool:
        self.began_again = self._offset > 0
        self._offset, self._inode, self.unreadable = 0, inode, 0
        return self.began_again

    def _parse(self, line: bytes) -> Record | None:
        try:
            record = json.loads(line)
        except ValueError:
            record = None
        is_line = isinstance(record, dict) and isinstance(record.get("step"), int)
        if is_line and all(isinstance(record.get(key), str) for key in self._texts):
            return record
        self.unreadable += 1
        return None


class _Column:
    """One metric: steps and values."""

    def __init__(self) -> None:
        self.steps, self.values = array("q"), array("d")

    def append(self, step: int, value: float) -> None:
        self.steps.append(step)
        self.values.append(value)

    def cut(self, step: int) -> None:
        """Forget `step` and what came after it."""
        if self.steps and self.steps[-1] >= step:
            at = bisect_left(self.steps, step)
            del self.steps[at:], self.values[at:]


def _array_files(folder: Path) -> Iterator[tuple[int, Path, int]]:
    """Step, path and time of writing (ns) of every file of arrays."""
    try:
        entries = list(os.scandir(folder))
    except FileNotFoundError:
        return
    for entry in entries:
        name, suffix = os.path.splitext(entry.name)
        number = name.removeprefix("step-")
        if suffix == ".npz" and number.isdecimal():
            try:
                yield int(number), Path(entry.path), entry.stat().st_mtime_ns
            except FileNotFoundError:
                continue
