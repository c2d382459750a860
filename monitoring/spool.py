"""The spool: what one attempt of a run has to tell the tracking store, in a local file that outlives the attempt.

    tracking/spool-00001.jsonl   the first attempt's lines; deleted once they are delivered and the attempt has ended
    tracking/delivered.json      how far the store has them (`Position`)
    tracking/config.json         the configuration, with the store's address as the attempt resolved it

A line is one JSON object and one write in append mode, so that threads may share the file and kill -9 tears the last
line at most; what is torn is passed over. Kinds of lines, by their first key:

    attempt   number, host, job and time of the attempt: the first line
    resume    the attempt goes on after this step: later ones that an earlier attempt spooled are not sent again
    rollback  the attempt went back to this step: what it trains anew is sent as new points
    step      numbers of one step (`metrics`), or of the machine at that time (`system`)
    end       how the attempt ended and why: the last line

Times are in milliseconds and differ from line to line: with key and step they name a point, also after a restart.
"""

import json
import os
import socket
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from configs.atomic import write_atomically
from configs.errors import DataError
from configs.schema import Config
from monitoring.recorder import json_line, parse_line

FOLDER, POSITION, CONFIG, LOCK = "tracking", "delivered.json", "config.json", "lock"

Line = dict[str, Any]


@dataclass(frozen=True)
class Position:
    """How far the MLflow run `run_id` has the spools: all before `attempt`, and `offset` bytes of that one's."""

    run_id: str
    attempt: int
    offset: int = 0
    last_step: int = -1
    """Newest step that was spooled and sent; -1: none. A rollback takes it back."""
    skip_until: int = -1
    """Steps up to this one were sent by an earlier attempt, and trained again to the bit by this one."""

    def write(self, run_dir: Path) -> None:
        """All or nothing. Raises OSError."""
        write_atomically(run_dir / FOLDER / POSITION, json.dumps(asdict(self)) + "\n")

    @staticmethod
    def read(run_dir: Path) -> "Position | None":
        """None before the first delivery. Raises: DataError if the file is not what `write` writes."""
        path = run_dir / FOLDER / POSITION
        try:
            return Position(**json.loads(path.read_bytes())) if path.exists() else None
        except (ValueError, TypeError):
            raise DataError(f"{path}: damaged; delete it, and what is spooled is compared with the store") from None


class Spool:
    """The file of an attempt, written by the training thread and the tracker's: one short write per line."""

    def __init__(self, run_dir: Path) -> None:
        """Begin the next attempt's file. Raises OSError."""
        position, waiting = Position.read(run_dir), attempts(run_dir)
        self.attempt = max([0 if position is None else position.attempt, *waiting], default=0) + 1
        folder = run_dir / FOLDER
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)  # addresses of stores may hold passwords
        self._file = os.open(spool_path(run_dir, self.attempt), os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        self._lock = threading.Lock()  # held for one short write
        self._torn = False
        self._last_time = 0
        self.append(attempt=self.attempt, host=socket.gethostname(), job=os.environ.get("SLURM_JOB_ID"))

    def append(self, **line: Any) -> None:
        """Write one line with its time. Raises OSError; the line is lost then, and later ones may succeed."""
        with self._lock:
            self._last_time = max(self._last_time + 1, int(time.time() * 1000))
            text = json_line({**line, "time": self._last_time}).encode()
            text = b"\n" + text if self._torn else text
            self._torn = True
            if os.write(self._file, text) < len(text):
                raise OSError("the disk took half of a line")
            self._torn = False

    def close(self) -> None:
        """No line follows."""
        os.close(self._file)


def spool_path(run_dir: Path, attempt: int) -> Path:
    """The file of an attempt (from 1)."""
    return run_dir / FOLDER / f"spool-{attempt:05d}.jsonl"


def attempts(run_dir: Path) -> list[int]:
    """The attempts whose spools are not delivered and done with, oldest first."""
    names = [path.stem.removeprefix("spool-") for path in (run_dir / FOLDER).glob("spool-*.jsonl")]
    return sorted(int(name) for name in names if name.isdecimal())


def read_on(path: Path, offset: int) -> Iterator[tuple[Line, int]]:
    """Each line from byte `offset`, with the offset behind it, read as they are taken.

    A line without its newline is being written, or was torn: neither it nor what cannot be read comes back.
    """
    with path.open("rb") as file:
        file.seek(offset)
        for text in file:
            offset += len(text)
            line = parse_line(text) if text.endswith(b"\n") else None
            if line is not None:
                yield line, offset


def read_lines(path: Path, offset: int, points: int) -> list[tuple[Line, int]]:
    """The next lines of `read_on`: one at least, where there is one, and more while they hold `points` at most."""
    lines: list[tuple[Line, int]] = []
    for line, behind in read_on(path, offset):
        points -= len(numbers(line))
        if lines and points < 0:
            break
        lines.append((line, behind))
    return lines


def read_header(path: Path) -> Line:
    """The first line: who wrote the spool."""
    found = read_lines(path, 0, 0)
    return found[0][0] if found else {}


def last_words(path: Path) -> tuple[int, Line | None]:
    """The newest step of a spool, and the line that tells how the attempt ended; None if it has none."""
    step = 0
    for line, _ in read_on(path, 0):
        if "end" in line:
            return step, line
        for kind in ("step", "rollback"):
            step = int(line.get(kind, step))
    return step, None


def write_config(run_dir: Path, config: Config, uri: str) -> None:
    """Keep what a delivery needs when this process is gone: the configuration, with the store's address resolved.

    Raises OSError.
    """
    found = config.model_copy(update={"tracking": config.tracking.model_copy(update={"uri": uri})})
    write_atomically(run_dir / FOLDER / CONFIG, found.model_dump_json(indent=2) + "\n")


def trains_otherwise(run_dir: Path, config: Config) -> bool:
    """Whether the attempt before had another configuration, in what the numbers of a step depend on.

    One that this version cannot read was another.
    """
    try:
        before = read_config(run_dir)
    except FileNotFoundError:
        return False
    except ValidationError:
        return True
    beside = {"run", "monitoring", "alerts", "checkpoint", "profile", "tracking"}
    return before.model_dump(exclude=beside) != config.model_dump(exclude=beside)


def read_config(run_dir: Path) -> Config:
    """What `write_config` kept. Raises: FileNotFoundError if no attempt was tracked; DataError if it is damaged."""
    path = run_dir / FOLDER / CONFIG
    try:
        return Config.model_validate_json(path.read_bytes())
    except ValueError:
        raise DataError(f"{path}: damaged; `steadytrain train` of the run writes it anew") from None


def numbers(line: Mapping[str, Any]) -> dict[str, float]:
    """The metrics of a line; none of a line that is not of a step."""
    return line.get("metrics") or line.get("system") or {}


def count_waiting(run_dir: Path) -> int:
    """Points that wait for delivery, over all spools."""
    position, count = Position.read(run_dir), 0
    for attempt in attempts(run_dir):
        here = position is not None and position.attempt == attempt
        offset = position.offset if position is not None and here else 0
        skip_until = position.skip_until if position is not None and here else -1
        for line, _ in read_on(spool_path(run_dir, attempt), offset):
            if "system" in line or line.get("step", -1) > skip_until:
                count += len(numbers(line))
    return count
