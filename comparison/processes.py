"""One trial as an operating-system process with everything it started: none of it outlives `stop` or the trial."""

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path

import psutil

GRACE_SECONDS = 10.0  # between SIGTERM and SIGKILL: time to close files and the tracker's run
POLL_SECONDS = 0.05


class TrialProcess:
    """A command in a session of its own, its output in two files."""

    def __init__(self, command: Sequence[str], stdout: Path, stderr: Path) -> None:
        stdout.parent.mkdir(parents=True, exist_ok=True)
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        with stdout.open("wb") as out, stderr.open("wb") as err:
            self._process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=out, stderr=err, env=environment, start_new_session=True
            )

    @property
    def pid(self) -> int:
        return self._process.pid

    def poll(self) -> int | None:
        """The exit code, or None while it runs. What the trial left running in its session ends with it."""
        if self._process.returncode is None:
            if not self._has_exited():
                return None
            self._signal(signal.SIGKILL)
        return self._process.wait()

    def stop(self) -> None:
        """Ask the trial to end, then make it; returns when it and all its descendants are gone."""
        if self._process.returncode is not None:
            return
        family = _descendants(self.pid)  # ranks may have sessions of their own
        self._signal(signal.SIGTERM)
        deadline = time.monotonic() + GRACE_SECONDS
        while not self._has_exited() and time.monotonic() < deadline:
            time.sleep(POLL_SECONDS)
        self._signal(signal.SIGKILL)
        self._process.wait()
        for process in family:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()  # psutil compares start times: never a stranger that was given the id
        psutil.wait_procs(family, timeout=GRACE_SECONDS)

    def _has_exited(self) -> bool:
        """Looks without reaping: an unreaped leader keeps the group's id from being given to someone else."""
        return os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None

    def _signal(self, number: int) -> None:
        with contextlib.suppress(ProcessLookupError):  # the group is empty
            os.killpg(self.pid, number)


def _descendants(pid: int) -> list[psutil.Process]:
    try:
        return psutil.Process(pid).children(recursive=True)
    except psutil.NoSuchProcess:
        return []
