"""What the ranks of one attempt leave for who judges it: a record each, replaced as a whole at every change.

    <job folder>/attempts/<job id>.<restart>/
        rank-3.json         began, told to end, ended: see `RankRecord`
        rank-3.traceback    of an exception
        preflight.json      nodes found unfit, by rank 0
        outcome.json        the run's outcome, by rank 0
        master.json         where rank 0 listens
        end.json            the verdict, by `decide`

A rank that was killed leaves a record without an end: that is how it is told from those that its death took along.
"""

import json
import os
import threading
import time
import traceback
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from configs.atomic import write_atomically
from configs.errors import LaunchError, SteadytrainError
from launcher.jobs.place import Place

ATTEMPTS, END, PREFLIGHT = "attempts", "end.json", "preflight.json"


@dataclass(frozen=True)
class RankRecord:
    """One rank of one attempt; times in seconds since 1970. `how` is None until it has ended by itself."""

    rank: int
    node: str
    pid: int
    world_size: int
    began: float
    told: str | None = None
    """The signal that asked it to end."""
    told_at: float | None = None
    how: str | None = None
    """`finished`, `diverged`, `stopped`, `failed` or `refused` (the user's mistake)."""
    ended: float | None = None
    step: int = 0
    """The update under way when it ended, from 1; 0: before the first."""
    message: str = ""


class RankJournal:
    """The record of this process; calls from several threads do no harm."""

    def __init__(self, folder: Path, place: Place) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self._lock = threading.Lock()
        self._record = RankRecord(place.rank, place.node, os.getpid(), place.world_size, began=time.time())
        self._write()

    def told(self, signal_name: str) -> None:
        """This rank was asked to end."""
        if self._record.told is None:  # only the thread that listens to signals calls this
            self._change(told=signal_name, told_at=time.time())

    def ended(self, how: str, *, step: int = 0, message: str = "") -> None:
        """This rank has ended by itself."""
        self._change(how=how, ended=time.time(), step=step, message=message)

    def failed(self, error: BaseException, step: int) -> None:
        """This rank ends with an exception."""
        trace = "".join(traceback.format_exception(error))
        write_atomically(self.folder / f"rank-{self._record.rank}.traceback", trace)
        if is_users_mistake(error):
            self.ended("refused", step=step, message=str(error))
            return
        first = (str(error).strip().splitlines() or [""])[0]
        self.ended("failed", step=step, message=f"{type(error).__name__}: {first}".removesuffix(": "))

    def _change(self, **changes: Any) -> None:
        with self._lock:
            self._record = replace(self._record, **changes)
            self._write()

    def _write(self) -> None:
        write_atomically(self.folder / f"rank-{self._record.rank}.json", json.dumps(asdict(self._record)))


def is_users_mistake(error: BaseException) -> bool:
    """Whether another attempt would say the same; not of ranks that did not find each other."""
    return isinstance(error, SteadytrainError) and not isinstance(error, LaunchError)


def log_banner(attempt: str) -> str:
    """The line by which each rank's output of an attempt begins."""
    return f"=== attempt {attempt} ==="


def read_ranks(folder: Path) -> list[RankRecord]:
    """The records of an attempt, by rank."""
    records = [RankRecord(**json.loads(path.read_text("utf-8"))) for path in folder.glob("rank-*.json")]
    return sorted(records, key=lambda record: record.rank)


def attempts(job_dir: Path) -> list[Path]:
    """The attempts of a job in the order in which they began."""
    folders = [path for path in (job_dir / ATTEMPTS).glob("*") if path.is_dir()]
    return sorted(folders, key=lambda folder: min(_beginnings(folder), default=folder.stat().st_mtime))


def read_json(path: Path) -> dict[str, Any] | None:
    """What an attempt's file says; None if it was not written."""
    try:
        return json.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        return None


def _beginnings(folder: Path) -> Iterator[float]:
    for record in read_ranks(folder):
        yield record.began
