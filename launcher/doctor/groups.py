"""All groups of checks at once, each in a process of its own with a time limit; their findings in a fixed order."""

import json
import os
import queue
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path

from launcher.doctor.finding import Asked, Finding, problem

LIMITS = {
    "software": 30.0,
    "devices": 90.0,
    "processes": 90.0,
    "machine": 30.0,
    "disk": 60.0,
    "tracking": 60.0,
    "slurm": 60.0,
}
"""Seconds, in the order of the report. Most take two; to import torch from a busy network disk takes a minute."""
FIXES = {
    "software": "make a new environment: remove .venv, then `make test`",
    "devices": "`python -c 'import torch; torch.ones(1)'` shows it; reinstall torch or the driver",
    "processes": "`python -c 'import torch.distributed'` shows it; reinstall torch or the driver",
    "machine": "look at name resolution: /etc/hosts, /etc/resolv.conf",
    "disk": "the file system of the runs folder does not answer: `df`, `ls` there; choose another with run.dir",
    "tracking": "look at the tracking store; train without it with tracking.kind=none",
    "slurm": "ask Slurm by hand: `scontrol ping`, `sinfo`",
}
ROOT = Path(__file__).parents[2]


def examine(asked: Asked, limits: Mapping[str, float] = LIMITS) -> Iterator[Finding]:
    """Every group's findings, as they come, group by group. Processes that have not ended are killed at the end."""
    groups = [Group(name, asked, limit) for name, limit in limits.items()]
    try:
        for group in groups:
            yield from group.findings()
    finally:
        for group in groups:
            group.kill()


class Group:
    """A running group of checks."""

    def __init__(self, name: str, asked: Asked, seconds: float) -> None:
        self.name, self.seconds, self.deadline = name, seconds, time.monotonic() + seconds
        self._stderr = tempfile.TemporaryFile()  # noqa: SIM115 (read when the process has ended)
        self._process = subprocess.Popen(
            [sys.executable, "-m", "launcher.doctor.child", name],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._stderr,
            text=True,
            env=_environment(),
            start_new_session=True,  # so that it is killed with all that it has started
        )
        self._lines: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        threading.Thread(target=self._read, args=(json.dumps(asdict(asked)),), daemon=True).start()

    def findings(self) -> Iterator[Finding]:
        """What it finds, and what became of it where that was not all."""
        while True:
            try:
                line = self._lines.get(timeout=max(0.0, self.deadline - time.monotonic()))
            except queue.Empty:
                self.kill()
                yield problem(self.name, f"no answer within {self.seconds:.0f} s", FIXES[self.name])
                return
            if line is None:
                break
            yield Finding(**json.loads(line))
        code = self._process.wait()
        if code:
            yield problem(self.name, self._last_words(code), FIXES[self.name])

    def kill(self) -> None:
        """Without waiting: a process that waits for a dead file server does not end."""
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, signal.SIGKILL)

    def _read(self, asked: str) -> None:
        assert self._process.stdin is not None and self._process.stdout is not None
        with suppress(BrokenPipeError), self._process.stdin as stdin:  # if it died at its start, its end says so
            stdin.write(asked)
        for line in self._process.stdout:
            self._lines.put(line)
        self._lines.put(None)

    def _last_words(self, code: int) -> str:
        if code < 0:
            return f"its process was killed by {signal.Signals(-code).name}"
        self._stderr.seek(0)
        said = self._stderr.read().decode(errors="replace").strip().splitlines()
        return said[-1].strip() if said else f"its process ended with exit code {code}"


def _environment() -> dict[str, str]:
    """This code, wherever the command was called; one thread each, since they run at once."""
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    return os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
