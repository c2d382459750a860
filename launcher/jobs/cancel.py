"""`steadytrain cancel`: end the jobs of runs, queued or running, so that none comes back."""

import os
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import zip_longest
from pathlib import Path

from comparison.record import STUDY_FILE
from configs.errors import ConfigError, LaunchError
from configs.load import load
from launcher.jobs.job import Job, read_job
from launcher.jobs.queue import QueueState, is_over, local_supervisor, queue_states
from launcher.jobs.runs import find_runs
from launcher.jobs.standing import ask_queue, job_of, standing
from launcher.run_folder import CONFIG

SECONDS_FOR_SLURM = 30.0
SECONDS_BETWEEN_REQUESTS = 5.0
SECONDS_TO_SAVE = 45.0
"""How long a local job may take to save and end; its supervisor kills ranks before that."""
SLURM_POLL_SECONDS, LOCAL_POLL_SECONDS = 0.5, 0.05


@dataclass(frozen=True)
class Cancelled:
    """What became of one run."""

    run: str
    was: str
    """Its state before."""
    cancelled: list[str]
    """Ids of its jobs; none where there was nothing to cancel."""
    not_ended: list[str]
    """States of those that Slurm still holds."""

    def line(self) -> str:
        """For people."""
        if not self.cancelled:
            return f"{self.run}: nothing to cancel: {self.was}"
        late = f"; Slurm has not ended it within {SECONDS_FOR_SLURM:.0f} s ({', '.join(self.not_ended)})"
        done = f"{self.run}: cancelled job {', '.join(self.cancelled)}, which was {self.was}"
        return done + (late if self.not_ended else "")


def cancel(paths: Sequence[Path]) -> list[Cancelled]:
    """Cancel the jobs of runs, and of all trials of a study; what became of each run.

    Raises ConfigError for a path that is neither, and for a run that is no job, before anything is cancelled;
    LaunchError if Slurm does not answer, or refuses.
    """
    jobs = _jobs(paths)
    queue = ask_queue(jobs.values())
    before = {run_dir: standing(run_dir, job, queue) for run_dir, job in jobs.items()}
    for run_dir, where in before.items():
        if where.state == "unknown":
            raise LaunchError(f"{run_dir}: {where.detail}")
    alive = {run_dir: _marked(job) for run_dir, job in jobs.items() if before[run_dir].alive}
    left = _cancel_in_slurm([job for job in alive.values() if job.kind == "slurm"], queue.states)
    for run_dir, job in alive.items():
        if job.kind == "local":
            _end_local(job)
        _close_tracking(run_dir)
    return [
        Cancelled(
            run=str(run_dir),
            was=where.state,
            cancelled=list(alive[run_dir].ids) if run_dir in alive else [],
            not_ended=[left[job_id].state for job_id in jobs[run_dir].ids if run_dir in alive and job_id in left],
        )
        for run_dir, where in before.items()
    ]


def what_follows(paths: Sequence[Path], found: Sequence[Cancelled]) -> list[str]:
    """A line for each study whose trials were cancelled: the job that compares them is still in the queue."""
    some = any(entry.cancelled for entry in found)
    studies = [path for path in paths if (path / STUDY_FILE).is_file() and some]
    return [f"{path}: what compares its trials runs next, on those that ended" for path in studies]


def _jobs(paths: Sequence[Path]) -> dict[Path, Job]:
    found: dict[Path, Job] = {}
    for path in paths:
        runs = find_runs([path])
        if (path / STUDY_FILE).is_file():
            found |= {run.path: job for run in runs if (job := job_of(run.path)) is not None}
        elif [run.path for run in runs] == [path]:
            found[path] = read_job(path)
        else:
            raise ConfigError(f"{path}: is neither a run nor a study; name the runs that shall be cancelled")
    if not found:
        raise ConfigError(f"{paths[0]}: none of its trials was submitted as a job")
    return found


def _marked(job: Job) -> Job:
    """Written down first: an attempt that ends by itself meanwhile must not start again."""
    job = replace(job, cancelled=time.time())
    job.write()
    return job


def _cancel_in_slurm(jobs: Sequence[Job], states: Mapping[str, QueueState]) -> dict[str, QueueState]:
    """Cancel and wait until Slurm agrees; what it still holds at the end. Raises LaunchError if it refuses."""
    started, left, asked, refusal = time.monotonic(), _held(jobs, states), -SECONDS_BETWEEN_REQUESTS, ""
    while left and (waited := time.monotonic() - started) < SECONDS_FOR_SLURM:
        if waited - asked >= SECONDS_BETWEEN_REQUESTS:  # again, for a job that was on its way back into the queue
            refusal, asked = _scancel(jobs, left), waited
        time.sleep(SLURM_POLL_SECONDS)
        left = _held(jobs, queue_states(left))
    if refusal and any(found.state in ("PENDING", "RUNNING") for found in left.values()):
        for job in jobs:
            replace(job, cancelled=None).write()
        raise LaunchError(f"scancel: {refusal}")
    return left


def _held(jobs: Sequence[Job], states: Mapping[str, QueueState]) -> dict[str, QueueState]:
    """What Slurm has not ended yet."""
    return {
        job_id: states[job_id]
        for job in jobs
        for job_id in job.ids
        if job_id in states and not is_over(job, job_id, states[job_id])
    }


def _scancel(jobs: Sequence[Job], left: Mapping[str, QueueState]) -> str:
    """Chains from their last link on, so that none starts because another ended. Returns what Slurm complains of."""
    complaint = ""
    for links in zip_longest(*([job_id for job_id in reversed(job.ids) if job_id in left] for job in jobs)):
        command = ["scancel", *(job_id for job_id in links if job_id is not None)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
        complaint = done.stderr.strip().splitlines()[-1] if done.returncode and done.stderr.strip() else complaint
    return complaint.removeprefix("scancel: error: ")


def _end_local(job: Job) -> None:
    """Ask the supervisor to end its ranks, which save first; what has not ended in time is killed."""
    import psutil

    pid = local_supervisor(job)
    if pid is None:
        return
    try:
        supervisor = psutil.Process(pid)
        processes = [supervisor, *supervisor.children(recursive=True)]
        os.kill(pid, signal.SIGTERM)
    except (psutil.NoSuchProcess, ProcessLookupError):
        return
    deadline = time.monotonic() + SECONDS_TO_SAVE
    while local_supervisor(job) is not None and time.monotonic() < deadline:
        time.sleep(LOCAL_POLL_SECONDS)
    for process in processes:
        if process.is_running():
            process.kill()
    psutil.wait_procs(processes, timeout=5)


def _close_tracking(run_dir: Path) -> None:
    """The run's MLflow run must not look as if it went on."""
    from monitoring.mlflow_store import RUN_ID, mark_cancelled

    if (run_dir / RUN_ID).is_file():
        mark_cancelled(load(run_dir / CONFIG), run_dir)
