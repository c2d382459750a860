"""What Slurm knows of jobs, asked with one squeue; of jobs without Slurm, what their supervisor's process tells."""

import json
import os
import socket
import subprocess
import time
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from configs.errors import ConfigError, LaunchError
from launcher.jobs.attempt import END, attempts, read_json
from launcher.jobs.job import Job

ENDED = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "BOOT_FAIL", "DEADLINE", "OUT_OF_MEMORY")
PREEMPTED = "PREEMPTED"
"""An end only where the cluster cancels what it preempts; else the job is on its way back into the queue."""
BY_SLURM_ALONE = ("NODE_FAIL", "BOOT_FAIL", PREEMPTED)
"""Ends after which Slurm puts a job back into the queue by itself."""
SECONDS_TO_REQUEUE = 60.0
"""How long a job that is put back into the queue may still be shown as ended."""
LOCAL_RECORD = "local.json"


@dataclass(frozen=True)
class QueueState:
    """One line of squeue. `ended`: seconds since 1970, of a job that has."""

    state: str
    reason: str = ""
    nodes: str = ""
    ended: float | None = None


def queue_states(job_ids: Iterable[str]) -> dict[str, QueueState]:
    """The states of jobs that Slurm still holds, by id; those that ended some minutes ago may be missing.

    Raises LaunchError where there is no squeue, or it gets no answer: nothing is known then.
    """
    wanted = set(job_ids)
    if not wanted:
        return {}
    # Asking for ids that Slurm has forgotten is an error: ask for all of ours.
    command = ["squeue", "--noheader", "--me", "--array", "--states=all", "--format=%i|%T|%e|%N|%r"]
    environment = {**os.environ, "SLURM_TIME_FORMAT": "standard"}
    try:
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=30, check=False)
    except FileNotFoundError:
        raise LaunchError("there is no squeue on this machine: ask where the job was submitted") from None
    except subprocess.TimeoutExpired:
        raise LaunchError("squeue: no answer within 30 s") from None
    if done.returncode:
        words = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
        raise LaunchError(f"squeue: {words.removeprefix('squeue: error: ')}")
    states = {}
    for line in done.stdout.splitlines():
        job_id, state, ended, nodes, reason = line.split("|", 4)
        if job_id in wanted:
            has_ended = state in (*ENDED, PREEMPTED)
            reason = "" if reason == "None" else reason
            states[job_id] = QueueState(state, reason, nodes, _seconds(ended) if has_ended else None)
    return states


def is_alive(job: Job, job_id: str) -> bool:
    """Whether the job is waiting, running, or about to run again. Raises LaunchError if that cannot be known."""
    if job.kind == "local":
        return local_supervisor(job) is not None
    found = queue_states([job_id]).get(job_id)
    return found is not None and not is_over(job, job_id, found)


def is_over(job: Job, job_id: str, found: QueueState) -> bool:
    """Whether the job has ended for good: Slurm shows one that it puts back into the queue as ended for a moment."""
    if found.state not in (*ENDED, PREEMPTED):
        return False
    if job.cancelled is not None or found.state == "CANCELLED":
        return True
    end = last_end(job, job_id)
    comes_back = found.state in BY_SLURM_ALONE or (end is not None and end["decision"]["again"])
    last_sign = max(found.ended or 0.0, end["time"] if end is not None else 0.0)
    return not comes_back or time.time() - last_sign > SECONDS_TO_REQUEUE


def last_end(job: Job, job_id: str) -> dict[str, Any] | None:
    """The verdict and decision on the newest attempt of a job id; None if nobody judged it."""
    own = [folder for folder in attempts(job.path) if folder.name.rpartition(".")[0] == job_id]
    return read_json(own[-1] / END) if own else None


def local_supervisor(job: Job) -> int | None:
    """The process that runs a job on this machine; None if it has ended.

    Raises LaunchError if the job was started on another machine, ConfigError if its record is damaged.
    """
    import psutil

    try:
        record = json.loads(record_path(job).read_text("utf-8"))
        if record["host"] != socket.gethostname():
            raise LaunchError(f"{job.run_dir}: was started on {record['host']}: ask there")
        process = psutil.Process(record["pid"])
        same = abs(process.create_time() - record["created"]) < 1
        return process.pid if same and process.status() != psutil.STATUS_ZOMBIE else None
    except (FileNotFoundError, psutil.NoSuchProcess):
        return None
    except (ValueError, KeyError):
        raise ConfigError(f"{record_path(job)}: does not name a process") from None


def process_record() -> str:
    """What `local_supervisor` looks for, of this process."""
    import psutil

    return json.dumps({"host": socket.gethostname(), "pid": os.getpid(), "created": psutil.Process().create_time()})


def record_path(job: Job) -> Path:
    """Where the supervisor of a local job names itself."""
    return job.path / LOCAL_RECORD


def _seconds(timestamp: str) -> float | None:
    """Slurm's local time in seconds since 1970; None for `N/A`."""
    try:
        return datetime.fromisoformat(timestamp).timestamp()
    except ValueError:
        return None
