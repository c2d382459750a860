"""What went wrong in a rank: recorded by the rank, read by the process that started it."""

import json
import time
import traceback
from dataclasses import asdict, dataclass
from pathlib import Path

from configs.atomic import write_atomically


@dataclass(frozen=True)
class Failure:
    """The exception that ended a rank. `message` is one line per mistake if it is the user's."""

    rank: int
    time_ns: int
    is_user_error: bool
    message: str

    @classmethod
    def of(cls, error: BaseException, rank: int, *, is_user_error: bool) -> "Failure":
        """Describe an exception now."""
        first = (str(error).strip().splitlines() or [""])[0]
        text = str(error) if is_user_error else f"{type(error).__name__}: {first}".removesuffix(": ")
        return cls(rank, time.time_ns(), is_user_error, text)

    def write(self, logs: Path, error: BaseException) -> None:
        """Record the failure, and the traceback for who wants to read it."""
        trace = "".join(traceback.format_exception(error))
        write_atomically(traceback_path(logs, self.rank), trace)
        write_atomically(record_path(logs, self.rank), json.dumps(asdict(self)))


def read_failures(logs: Path, world_size: int) -> list[Failure]:
    """The failures that ranks recorded, the earliest first: what follows is its cascade."""
    paths = [record_path(logs, rank) for rank in range(world_size)]
    failures = [Failure(**json.loads(path.read_text("utf-8"))) for path in paths if path.exists()]
    return sorted(failures, key=lambda failure: failure.time_ns)


def record_path(logs: Path, rank: int) -> Path:
    """Where a rank records its failure."""
    return logs / f"rank-{rank}.failure.json"


def traceback_path(logs: Path, rank: int) -> Path:
    """Where a rank leaves its traceback."""
    return logs / f"rank-{rank}.traceback"
