"""One trial as an operating-system process with everything it started: none of it outlives `stop` or the trial."""

import contextlib
import os
import signal
import subprocess
from collections.abc import Sequence
from pathlib import Path

import psutil

GRACE_SECONDS = 10.0  # between SIGTERM and SIGKILL: time to close files and the tracker's run


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
            # Look before reaping: an unreaped leader keeps the group's id from being given to someone else.
            if os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
                return None
            self._signal(signal.SIGKILL)
        return self._process.wait()

    def stop(self) -> None:
        """Ask the trial to end, then make it; returns when it and all its descendants are gone."""
        if self._process.returncode is not None:
            return
        family = _descendants(self.pid)  # ranks may have sessions of their own
        self._signal(signal.SIGTERM)
        _, alive = psutil.wait_procs([psutil.Process(self.pid), *family], timeout=GRACE_SECONDS)
        for process in alive:
            _kill(process)
        self._signal(signal.SIGKILL)
        self._process.wait()
        psutil.wait_procs(family, timeout=GRACE_SECONDS)

    def _signal(self, number: int) -> None:
        with contextlib.suppress(ProcessLookupError):  # the group is empty
            os.killpg(self.pid, number)


def _descendants(pid: int) -> list[psutil.Process]:
    try:
        return psutil.Process(pid).children(recursive=True)
    except psutil.NoSuchProcess:
        return []


def _kill(process: psutil.Process) -> None:
    with contextlib.suppress(psutil.NoSuchProcess):
        process.kill()  # psutil compares start times: never a stranger that inherited the id
