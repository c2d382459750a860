"""Where a run stands: one word and its reason, from its folder, its job's records and the queue."""

import fcntl
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from comparison.record import FAILURE
from configs.errors import LaunchError
from launcher.jobs.attempt import END, attempts, read_json
from launcher.jobs.job import JOB, RECORD, Job, read_job
from launcher.jobs.queue import QueueState, is_over, local_supervisor, queue_states
from launcher.jobs.verdict import lost
from launcher.run_folder import lock_path
from monitoring.recorder import SUMMARY, read_stopped, read_summary

VERDICTS = {"unfit": "crashed", "vanished": "crashed"}
"""States of attempts that were given up, where they are not the verdict's own word."""
SLURM_WORDS = {"COMPLETING": "ending", "CONFIGURING": "starting"}


@dataclass(frozen=True)
class Standing:
    """`state`: pending, starting, running, ending, requeued, finished, diverged, stopped, stopped early (by its sweep),
    crashed, refused, lost, cancelled, unknown, unfinished, not started, or another state of Slurm in its own word.

    `alive`: a process of the run exists, or will.
    """

    state: str
    detail: str = ""
    alive: bool = False


@dataclass(frozen=True)
class Queue:
    """What one squeue said of many jobs; `silent` says why it said nothing."""

    states: Mapping[str, QueueState] = field(default_factory=dict)
    silent: str | None = None


def ask_queue(jobs: Iterable[Job | None]) -> Queue:
    """One squeue for all jobs that are Slurm's."""
    ids = [job_id for job in jobs if job is not None and job.kind == "slurm" for job_id in job.ids]
    try:
        return Queue(queue_states(ids))
    except LaunchError as error:
        return Queue(silent=str(error))


def job_of(run_dir: Path) -> Job | None:
    """The run's job; None if it was not submitted as one. Raises ConfigError for a damaged record."""
    return read_job(run_dir) if (run_dir / JOB / RECORD).is_file() else None


def own_attempts(job: Job) -> list[Path]:
    """The attempts of the last submission, oldest first; an earlier one had other ids."""
    return [folder for folder in attempts(job.path) if folder.name.rpartition(".")[0] in job.ids]


def standing(run_dir: Path, job: Job | None, queue: Queue) -> Standing:
    """Where a run stands. Raises DataError or ConfigError for damaged records."""
    if job is None:
        return _without_job(run_dir)
    if job.kind == "local":
        return _local(run_dir, job)
    return _in_queue(job, queue) or _ended(run_dir, job, queue)


def _without_job(run_dir: Path) -> Standing:
    """A run of `steadytrain train` or of a sweep on this machine."""
    summary = read_summary(run_dir)
    if summary is not None:
        return Standing(summary["status"])
    stopped = read_stopped(run_dir)
    if stopped is not None:
        return Standing("stopped early", stopped["reason"])
    if not run_dir.is_dir():
        return Standing("not started")
    if _is_locked(lock_path(run_dir)):
        return Standing("running", alive=True)
    failure = read_json(run_dir / FAILURE)
    if failure is not None:
        return Standing("crashed", failure["reason"])
    return Standing("unfinished", "its process has ended")


def _local(run_dir: Path, job: Job) -> Standing:
    try:
        supervisor = local_supervisor(job)
    except LaunchError as error:
        return Standing("unknown", str(error))
    if supervisor is None:
        return _ended(run_dir, job, Queue())
    if job.cancelled is not None:
        return Standing("cancelled", "its processes are ending", alive=True)
    return Standing("running", f"process {supervisor}", alive=True)


def _in_queue(job: Job, queue: Queue) -> Standing | None:
    """Of a job that waits or runs; of a chain, the link that runs or else the first one waiting."""
    held = [
        (number, job_id, found)
        for number, job_id in enumerate(job.ids, start=1)
        if (found := queue.states.get(job_id)) is not None and not is_over(job, job_id, found)
    ]
    if not held:
        return None
    number, job_id, found = min(held, key=lambda entry: entry[2].state == "PENDING")
    ran = any(folder.name.rpartition(".")[0] == job_id for folder in own_attempts(job))
    state, detail = SLURM_WORDS.get(found.state, found.state.lower()), found.reason or found.nodes
    if found.ended is not None:
        state, detail = "requeued", f"{found.state} in passing"
    elif found.state == "PENDING":
        state = "requeued" if ran else "pending"
    elif found.state in ("RUNNING", "COMPLETING"):
        detail = found.nodes
    if job.cancelled is not None:
        state, detail = "cancelled", "its processes are ending"
    if len(job.ids) > 1:
        detail = f"{detail + ', ' if detail else ''}link {number} of {len(job.ids)}"
    return Standing(state, detail, alive=True)


def _ended(run_dir: Path, job: Job, queue: Queue) -> Standing:
    """Of a job that is not in the queue, or of which the queue says nothing."""
    own = own_attempts(job)
    end = read_json(own[-1] / END) if own else None
    kind = end["verdict"]["kind"] if end is not None else None
    if kind in ("finished", "diverged"):
        return Standing(kind)
    if kind is None and (summary := _summary_since(run_dir, job.submitted)) is not None:
        return Standing(summary["status"])  # ended from outside when all was done
    if job.cancelled is not None:
        return Standing("cancelled")
    given_up = end is not None and not end["decision"]["again"]
    if queue.silent is not None and not (given_up and len(job.ids) == 1):
        return Standing("unknown", queue.silent)
    states = [queue.states[job_id].state for job_id in job.ids if job_id in queue.states]
    if "CANCELLED" in states and not given_up:
        return Standing("cancelled", "by scancel or an administrator")
    if end is not None and given_up:
        return Standing(VERDICTS.get(kind or "", kind or ""), end["decision"]["reason"])
    if not job.ids:
        return Standing("lost", "its submission broke off")
    if end is not None:
        return Standing("lost", f"{end['decision']['reason']}; was to start again and did not")
    return Standing(*_unjudged(job, own, states))


def _unjudged(job: Job, own: list[Path], states: list[str]) -> tuple[str, str]:
    """State and reason of a job whose last attempt nobody judged: Slurm ended it, or the supervisor was killed."""
    if job.kind == "local":
        return "lost", "its supervisor was killed: the machine restarted, or SIGKILL"
    last = states[-1] if states else None
    if not own:
        if last is None:
            return "lost", "Slurm does not know the job any more, and no process of it ever began"
        return "crashed", f"no process of it began (Slurm: {last})"
    if last == "TIMEOUT":
        return "lost", "Slurm's time limit came before it was saved: the site's grace_s is too short"
    if last is None:
        return "lost", f"{lost(own[-1]).reason}, and Slurm does not know the job any more"
    return "lost", f"{lost(own[-1]).reason} (Slurm: {last})"


def _summary_since(run_dir: Path, time: float) -> dict[str, Any] | None:
    """The run's summary, unless it is of an earlier submission."""
    path = run_dir / SUMMARY
    return read_summary(run_dir) if path.exists() and path.stat().st_mtime >= time else None


def _is_locked(path: Path) -> bool:
    """Whether a process of this machine holds the lock file; a shared lock, so that two who ask do not meet."""
    try:
        with path.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False
