"""`steadytrain logs`: what the ranks of a job wrote, over all its attempts, now or as it grows.

Each rank has two files for each job id, `<id>_<rank>_log.out` and `.err`; an attempt appends to them, and begins with
the line of `log_banner`. As with `tail`, a line `==> file <==` says which file follows where there are several.
"""

import re
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from configs.errors import ConfigError, LaunchError
from launcher.jobs.attempt import attempts, log_banner
from launcher.jobs.job import Job, read_job
from launcher.jobs.queue import is_over, local_supervisor, queue_states
from launcher.jobs.standing import ask_queue, standing

POLL_SECONDS = 0.2
SECONDS_BETWEEN_QUESTIONS = {"local": 0.5, "slurm": 5.0}
"""How often it is asked whether the job has ended."""
BANNER = re.compile(re.escape(log_banner("\0")).replace("\0", r"(?P<attempt>\S+)"), re.MULTILINE)

Say = Callable[[str], None]


@dataclass(frozen=True)
class LogFile:
    """One file of one rank of one job id."""

    path: Path
    rank: int


def print_logs(
    run_dir: Path, say: Say, *, rank: int | None = 0, errors_only: bool = False, attempt: int | None = None
) -> None:
    """Say what the ranks wrote; `rank` None: all, each line with its rank before it. `attempt` counts from 1.

    Raises ConfigError: no job, rank or attempt of that number, or nothing was written yet.
    """
    job = read_job(run_dir)
    name = None if attempt is None else _attempt_name(job, attempt)
    files = _files(job, job.ids if name is None else [name.rpartition(".")[0]], rank, errors_only=errors_only)
    if not files:
        raise ConfigError(f"{run_dir}: {_why_nothing(job, run_dir, rank)}")
    writer = Writer(say, label=rank is None)
    for file in files:
        text = file.path.read_text("utf-8", errors="replace")
        writer.write(file, text if name is None else _section(text, name))


def follow_logs(run_dir: Path, say: Say, *, rank: int | None = 0, errors_only: bool = False) -> None:
    """Say what was written and what comes, over all attempts, until the job has ended for good.

    Raises ConfigError if the run was not submitted as a job, LaunchError if it cannot be known whether it goes on.
    """
    job, writer = read_job(run_dir), Writer(say, label=rank is None)
    read: dict[Path, int] = {}
    alive, asked = True, 0.0
    while True:
        if time.monotonic() - asked > SECONDS_BETWEEN_QUESTIONS[job.kind]:
            alive, asked = _is_alive(job), time.monotonic()
        grew = False
        for file in _files(job, job.ids, rank, errors_only=errors_only):
            text, read[file.path] = _new_lines(file.path, read.get(file.path, 0), to_the_end=not alive)
            grew = grew or bool(text)
            writer.write(file, text)
        if not alive and not grew:
            break
        time.sleep(POLL_SECONDS)
    if not read:
        raise ConfigError(f"{run_dir}: {_why_nothing(job, run_dir, rank)}")


class Writer:
    """Says text of several files in turn; with `label`, each line has its rank before it, as with `srun --label`."""

    def __init__(self, say: Say, *, label: bool) -> None:
        self._say, self._label = say, label
        self._last: Path | None = None

    def write(self, file: LogFile, text: str) -> None:
        """`text` of the file, whole lines but for its last."""
        if not text:
            return
        if file.path != self._last and not self._label:
            self._say(f"{'' if self._last is None else chr(10)}==> {file.path.name} <==\n")
        self._last = file.path
        if self._label:
            text = "".join(f"{file.rank}: {line}" for line in text.splitlines(keepends=True))
        self._say(text if text.endswith("\n") else text + "\n")


def _files(job: Job, ids: Sequence[str], rank: int | None, *, errors_only: bool) -> list[LogFile]:
    """In the order of the ids, then of the ranks; `.out` before `.err`."""
    folder, found = Path(job.log_folder), []
    for index, job_id in enumerate(ids):
        for path in folder.glob(f"{job_id}_*_log.*"):
            match = re.fullmatch(rf"{re.escape(job_id)}_(\d+)_log\.(out|err)", path.name)
            if match and rank in (None, int(match[1])) and not (errors_only and match[2] == "out"):
                found.append((index, int(match[1]), match[2] == "err", path))
    return [LogFile(path, number) for index, number, _, path in sorted(found)]


def _new_lines(path: Path, offset: int, *, to_the_end: bool) -> tuple[str, int]:
    """What was written since `offset`, in whole lines unless nothing more will come; and the new offset."""
    with path.open("rb") as file:
        file.seek(offset)
        new = file.read()
    if not to_the_end:
        new = new[: new.rfind(b"\n") + 1]
    return new.decode("utf-8", errors="replace"), offset + len(new)


def _section(text: str, attempt: str) -> str:
    """What an attempt wrote: from its banner to that of the next."""
    banners = list(BANNER.finditer(text))
    for banner, following in zip(banners, [*banners[1:], None], strict=True):
        if banner["attempt"] == attempt:
            return text[banner.start() : None if following is None else following.start()]
    return ""


def _attempt_name(job: Job, number: int) -> str:
    names = [folder.name for folder in attempts(job.path)]
    if not 1 <= number <= len(names):
        had = f"1 to {len(names)}" if len(names) > 1 else "1" if names else "none yet"
        raise ConfigError(f"--attempt = {number}: {job.run_dir} had {had}")
    return names[number - 1]


def _is_alive(job: Job) -> bool:
    if job.kind == "local":
        return local_supervisor(job) is not None
    states = queue_states(job.ids)
    return any(not is_over(job, job_id, found) for job_id, found in states.items())


def _why_nothing(job: Job, run_dir: Path, rank: int | None) -> str:
    ranks = sorted({file.rank for file in _files(job, job.ids, None, errors_only=False)})
    if ranks:
        return f"--rank = {rank}: its ranks are 0 to {ranks[-1]}"
    try:
        where = standing(run_dir, job, ask_queue([job]))
    except LaunchError as error:
        return f"nothing was written; {error}"
    return f"nothing was written yet: {where.state}{f' ({where.detail})' if where.detail else ''}"
