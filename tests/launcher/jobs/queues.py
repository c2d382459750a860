"""Runs in every state a job can be in, and a squeue that says what a test wants."""

import json
import os
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from launcher.jobs.attempt import END, RankRecord
from launcher.jobs.job import Job, private_folder
from monitoring.recorder import append_event

SQUEUE = '#!/bin/sh\necho "$@" >> {folder}/asked\ncat {folder}/queue\n'
SCANCEL = """#!/bin/sh
echo "$@" >> {folder}/cancelled
[ -e {folder}/refuses ] && {{ echo "scancel: error: Kill job error on job id 7: Access denied" >&2; exit 1; }}
now=$(date +%Y-%m-%dT%H:%M:%S)
for id in "$@"; do sed -i "s/^$id|[A-Z]*|[^|]*/$id|$(cat {folder}/after)|$now/" {folder}/queue; done
"""


@dataclass(frozen=True)
class FakeQueue:
    """squeue and scancel as scripts, first on PATH; `after`: the state of what was cancelled."""

    folder: Path

    @classmethod
    def install(cls, folder: Path, monkeypatch: pytest.MonkeyPatch) -> "FakeQueue":
        folder.mkdir()
        for name, script in (("squeue", SQUEUE), ("scancel", SCANCEL)):
            (folder / name).write_text(script.format(folder=folder))
            (folder / name).chmod(0o755)
        monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
        queue = cls(folder)
        queue.shows()
        queue.after("CANCELLED")
        return queue

    def shows(self, *lines: str) -> None:
        """`id STATE seconds-since-its-end nodes reason`, the last three optional."""
        (self.folder / "queue").write_text("".join(_squeue_line(line) for line in lines))

    def after(self, state: str) -> None:
        (self.folder / "after").write_text(state)

    def asked(self) -> int:
        path = self.folder / "asked"
        return len(path.read_text().splitlines()) if path.exists() else 0

    def cancelled(self) -> list[str]:
        path = self.folder / "cancelled"
        return path.read_text().splitlines() if path.exists() else []


def _squeue_line(line: str) -> str:
    words = line.split()
    job_id, state, age, nodes, reason = words + ["-", "-", "-", "-", "-"][len(words) :]
    end = "N/A" if age == "-" else time.strftime("%Y-%m-%dT%H:%M:%S", time.localtime(time.time() - float(age)))
    return f"{job_id}|{state}|{end}|{'' if nodes == '-' else nodes}|{'None' if reason == '-' else reason}\n"


def make_run(run_dir: Path, *, steps: int = 100, trained: int | None = None) -> Path:
    """A run folder whose last line of metrics is of step `trained`; 1,000 tokens a step, 500 a second."""
    run_dir.mkdir(parents=True)
    (run_dir / "config.yaml").write_text(f"run: {{name: {run_dir.name}}}\ntraining: {{steps: {steps}}}\n")
    if trained is not None:
        lines = [{"step": step, "tokens": 1000 * step, "loss": 3.25, "tokens_per_s": 500.0} for step in (1, trained)]
        (run_dir / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return run_dir


def make_job(run_dir: Path, *ids: str, **values: Any) -> Job:
    """The record of a job that was submitted an hour ago."""
    folder = private_folder(run_dir / "job")
    job = Job(folder=str(folder), run_dir=str(run_dir), site="lab", kind="slurm", log_folder=str(folder / "submitit"))
    job = replace(job, ids=list(ids), submitted=time.time() - 3600, **values)
    job.write()
    return job


def make_attempt(
    job: Job, name: str, *, began: float = 300, ended: float | None = None, kind: str | None = None,
    again: bool = False, reason: str = "why", **rank: Any,
) -> Path:  # fmt: skip
    """An attempt of two ranks; times in seconds ago. With a `kind` it was judged at its end."""
    now, folder = time.time(), job.path / "attempts" / name
    folder.mkdir(parents=True)
    for number in range(2):
        record = RankRecord(number, f"n{number}", 100 + number, 2, began=now - began)
        values = record.__dict__ | {"ended": None if ended is None else now - ended} | rank
        (folder / f"rank-{number}.json").write_text(json.dumps(values))
    if kind is not None:
        verdict = {"kind": kind, "reason": reason}
        decision = {"again": again, "exit_code": 0, "reason": reason}
        end = {"time": now - (ended or 0.0), "verdict": verdict, "decision": decision}
        (folder / END).write_text(json.dumps(end))
        append_event(Path(job.run_dir), 0, f"attempt_{kind}", reason)
    return folder
