"""The life of a job without Slurm: `--cluster local` runs the same ranks on this machine and judges them the same way.

A supervisor in a session of its own plays srun and the batch script: it starts the ranks as submitit's local jobs, ends
all when one fails (SIGTERM, then SIGKILL), hands SIGUSR2 and SIGTERM on to them, and decides as `launcher.jobs.decide`
does whether they start again. `python -m launcher.jobs.local JOB_FOLDER JOB_ID WORLD_SIZE`.
"""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

from submitit.core.utils import DelayedSubmission, JobPaths

from configs.atomic import write_atomically
from configs.errors import LaunchError
from configs.sites import Site
from launcher.jobs.decide import CRASHED, record_event, settle
from launcher.jobs.job import Job, read_job
from launcher.jobs.place import RESTART
from launcher.jobs.queue import process_record, record_path
from launcher.jobs.rank import RankJob
from launcher.worker import end_with_parent

KILL_SECONDS = 30.0
"""Between SIGTERM and SIGKILL, as Slurm's KillWait: for ranks that outlive another's failure, or are cancelled."""
POLL_SECONDS = 0.05
SECONDS_TO_START = 30.0


def start(job: Job, rank_job: RankJob, site: Site, code: Path) -> str:
    """Start the supervisor and return at once; the job's id. Raises LaunchError."""
    job_id, folder = f"local{time.strftime('%m%d%H%M%S')}", Path(job.log_folder)
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    submission = DelayedSubmission(rank_job)
    submission.set_timeout(timeout_min=0, max_num_timeout=0)
    submission.dump(JobPaths(folder, job_id).submitted_pickle)
    record_path(job).unlink(missing_ok=True)
    command = [site.python or sys.executable, "-m", "launcher.jobs.local", job.folder, job_id]
    log = folder / f"{job_id}_supervisor.log"
    environment = {**os.environ, **site.environment, "PYTHONPATH": str(code), "PYTHONUNBUFFERED": "1"}
    with log.open("ab") as output:
        process = subprocess.Popen(
            [*command, str(site.resources.world_sizes[-1])],
            cwd=code, env=environment, stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True,
        )  # fmt: skip
    deadline = time.monotonic() + SECONDS_TO_START
    while not record_path(job).exists():
        if process.poll() is not None or time.monotonic() > deadline:
            raise LaunchError(f"the job's supervisor did not start; see {log}")
        time.sleep(POLL_SECONDS)
    return job_id


class Supervisor:
    """Runs attempts of one job until it is decided that there is no other."""

    def __init__(self, job: Job, job_id: str, world_size: int) -> None:
        self._job, self._job_id, self._world_size = job, job_id, world_size
        self._ranks: list[subprocess.Popen[bytes]] = []
        self._end_by: float | None = None
        """When ranks that were told to end are killed, by the monotonic clock."""
        signal.signal(signal.SIGUSR2, self._hand_on)
        signal.signal(signal.SIGTERM, self._cancel)

    def run(self) -> int:
        """All attempts; the job's exit code."""
        restart = 0
        while True:
            exit_code = self._attempt(restart)
            verdict, decision = settle(self._job, f"{self._job_id}.{restart}", exit_code)
            record_event(self._job, verdict, decision)
            print(f"{verdict.kind}: {decision.reason}", flush=True)  # noqa: T201
            if not decision.again or self._job.cancelled is not None:
                return decision.exit_code
            restart += 1

    def _attempt(self, restart: int) -> int:
        """Start the ranks and wait for all of them; the first exit code that is not 0, as a shell would say it."""
        first, self._ranks = 0, []
        with ExitStack() as files:
            for rank in range(self._world_size):
                self._ranks.append(self._start(rank, restart, files))
            if self._job.cancelled is not None:  # while they were started
                self._end_ranks()
            while any(process.poll() is None for process in self._ranks):
                time.sleep(POLL_SECONDS)
                failed = [process.returncode for process in self._ranks if process.returncode]
                if failed and not first:
                    first = failed[0]
                    self._end_ranks()
                elif self._end_by is not None and time.monotonic() > self._end_by:
                    self._signal(signal.SIGKILL)
            self._end_by = None
        first = first or next((process.returncode for process in self._ranks if process.returncode), 0)
        return first if first >= 0 else 128 - first

    def _start(self, rank: int, restart: int, files: ExitStack) -> subprocess.Popen[bytes]:
        folder = Path(self._job.log_folder)
        logs = [
            files.enter_context((folder / f"{self._job_id}_{rank}_log.{kind}").open("ab")) for kind in ("out", "err")
        ]
        environment = {
            **os.environ,
            RESTART: str(restart),
            "SUBMITIT_EXECUTOR": "local",
            "SUBMITIT_LOCAL_JOB_ID": self._job_id,
            "SUBMITIT_LOCAL_NTASKS": str(self._world_size),
            "SUBMITIT_LOCAL_GLOBALID": str(rank),
            "SUBMITIT_LOCAL_LOCALID": str(rank),
        }
        command = [sys.executable, "-u", "-m", "submitit.core._submit", str(folder)]
        return subprocess.Popen(
            command, env=environment, stdin=subprocess.DEVNULL, stdout=logs[0], stderr=logs[1],
            preexec_fn=end_with_parent,  # this process has one thread: nothing can be held at the fork
        )  # fmt: skip

    def _end_ranks(self) -> None:
        self._end_by = time.monotonic() + KILL_SECONDS
        self._signal(signal.SIGTERM)

    def _signal(self, number: int) -> None:
        for process in self._ranks:
            process.send_signal(number)  # does nothing to one that was waited for

    def _hand_on(self, number: int, _: object) -> None:
        self._signal(number)

    def _cancel(self, number: int, _: object) -> None:
        self._job = replace(self._job, cancelled=time.time())
        self._end_ranks()


def main(arguments: Sequence[str]) -> int:
    """The supervisor's process."""
    job = read_job(Path(arguments[0]).parent)
    supervisor = Supervisor(job, arguments[1], int(arguments[2]))
    write_atomically(record_path(job), process_record())
    try:
        return supervisor.run()
    except OSError as error:
        print(f"the job could not be run: {error}", file=sys.stderr)  # noqa: T201
        return CRASHED


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
