"""Runs submitted by the command line to the real Slurm of `cluster/`, and what the tests do to them."""

import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import psutil

from cluster.lab import Lab
from configs.schema import Config
from launcher.jobs.attempt import attempts, read_ranks
from launcher.jobs.decide import read_verdict
from launcher.jobs.job import Job, read_job
from launcher.jobs.queue import ENDED
from monitoring.recorder import read_metrics
from tests.training.test_run import TINY, tiny

ROOT = Path(__file__).parents[3]
SHORT = ["checkpoint.interval=10", "monitoring.interval=20", "training.eval_interval=50", "training.eval_samples=16"]
PATIENCE_S = 240.0


@dataclass(frozen=True)
class Runs:
    """Submits to one cluster; all runs are below one folder."""

    lab: Lab
    data: Path
    folder: Path

    def settings(self, name: str, *overrides: str) -> list[str]:
        fixed = [
            f"data.sources.0.path={self.data}",
            f"run.dir={self.folder}",
            "tracking.kind=none",
            "monitoring.pictures=false",
        ]
        return [*fixed, f"run.name={name}", *SHORT, *overrides]

    def config(self, world_size: int, name: str, *overrides: str) -> Config:
        return tiny(self.data, self.folder, world_size, f"run.name={name}", *SHORT, *overrides)

    def command(self, *arguments: str, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
        """The `steadytrain` command line of the checkout at `cwd`."""
        environment = os.environ | self.lab.environment | {"OMP_NUM_THREADS": "1"}
        command = [sys.executable, "-m", "launcher", *arguments]
        return subprocess.run(command, capture_output=True, text=True, env=environment, cwd=cwd, check=False)

    def submit(self, name: str, *overrides: str, options: tuple[str, ...] = (), cwd: Path = ROOT) -> "Run":
        settings = self.settings(name, *overrides)
        done = self.command("submit", str(TINY), *settings, "--cluster", "lab", *options, cwd=cwd)
        assert done.returncode == 0, done.stderr
        return Run(self.lab, self.folder / name)


@dataclass(frozen=True)
class Run:
    """One submitted run."""

    lab: Lab
    run_dir: Path

    @property
    def job(self) -> Job:
        return read_job(self.run_dir)

    @property
    def job_id(self) -> str:
        return self.job.ids[-1]

    def state(self) -> str:
        return self.lab.run("squeue", "--noheader", "--states=all", f"--jobs={self.job_id}", "--format=%T").strip()

    def steps(self) -> int:
        return len(read_metrics(self.run_dir)) if (self.run_dir / "metrics.jsonl").exists() else 0

    def train_until(self, step: int) -> None:
        self.wait(lambda: self.steps() >= step, f"step {step}")

    def end(self) -> str:
        """Wait until Slurm is done with the job; its last state."""
        self.wait(lambda: self.state() in ENDED, "the end")
        return self.state()

    def kinds(self) -> list[str]:
        """The verdicts on the attempts so far; `?` of one that nobody has judged."""
        verdicts = [read_verdict(folder) for folder in attempts(self.job.path)]
        return ["?" if verdict is None else verdict.kind for verdict in verdicts]

    def ranks(self) -> list[psutil.Process]:
        """The processes of the newest attempt, by rank; those that are gone are left out."""
        found = []
        for record in read_ranks(attempts(self.job.path)[-1]):
            if psutil.pid_exists(record.pid):
                found.append(psutil.Process(record.pid))
        return found

    def left_over(self) -> list[int]:
        """Processes of any attempt that still run."""
        pids = [record.pid for folder in attempts(self.job.path) for record in read_ranks(folder)]
        return [pid for pid in pids if _runs(pid, str(self.run_dir))]

    def wait(self, condition: Callable[[], bool], what: str, seconds: float = PATIENCE_S) -> float:
        """Seconds it took."""
        started = time.monotonic()
        while not condition():
            waited = time.monotonic() - started
            assert waited < seconds, (
                f"{what} of {self.run_dir}: not within {seconds:.0f} s; {self.kinds()}\n{self.log()}"
            )
            time.sleep(0.1)
        return time.monotonic() - started

    def log(self) -> str:
        return "".join(path.read_text()[-2000:] for path in sorted(Path(self.job.log_folder).glob("*_0_log.*")))


def _runs(pid: int, mark: str) -> bool:
    """Whether `pid` is a live process of the run, and no stranger that was given the number."""
    try:
        process = psutil.Process(pid)
        return process.status() != psutil.STATUS_ZOMBIE and any(mark in part for part in process.cmdline())
    except psutil.NoSuchProcess:
        return False
