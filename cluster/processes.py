"""Processes that outlive the command that started them: told apart by pid and start time, ended with descendants."""

import os
import signal
import time
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path

import psutil

from cluster.machine import IGNORED_BY_PYTHON

POLL_S = 0.02


def spawn(command: list[str], environment: Mapping[str, str], log: Path) -> int:
    """Start a daemon in a session of its own, with its output at the end of `log`; its pid."""
    append = os.O_WRONLY | os.O_CREAT | os.O_APPEND
    files = [
        (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
        (os.POSIX_SPAWN_OPEN, 1, str(log), append, 0o600),
        (os.POSIX_SPAWN_DUP2, 1, 2),
    ]
    return os.posix_spawn(
        command[0], command, environment, file_actions=files, setsid=True, setsigdef=IGNORED_BY_PYTHON
    )


def started(pid: int) -> int | None:
    """When a living process started, in clock ticks since boot; None if it is gone or a zombie.

    With the pid it names a process for good: pids are used again, and the wall clock may be set.
    """
    with suppress(ChildProcessError, OSError):
        os.waitpid(pid, os.WNOHANG)  # a child of ours that has ended stays a zombie otherwise
    try:
        fields = Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] in "ZX" else int(fields[19])  # fields 3 and 22 of proc(5)


def power_off(pid: int) -> None:
    """SIGKILL a machine (see machine.py) and all that runs on it, at once: no process of it sees another one die."""
    try:
        root = psutil.Process(pid)
        stopped: set[psutil.Process] = set()
        while new := set(root.children(recursive=True)) - stopped:
            _send(new, signal.SIGSTOP)
            stopped |= new
        while alive := [process for process in root.children(recursive=True) if started(process.pid)]:
            _send(alive, signal.SIGKILL)  # the root adopts what a dead parent leaves: none can hide from this loop
            time.sleep(POLL_S)
    except psutil.NoSuchProcess:
        return
    end(pid, signal.SIGKILL)


def end(pid: int, number: signal.Signals = signal.SIGTERM, patience_s: float = 5.0) -> None:
    """Send a signal and wait until the process is gone; SIGKILL it and its children when it takes too long."""
    with suppress(psutil.NoSuchProcess):
        children = psutil.Process(pid).children(recursive=True)
        _send([psutil.Process(pid)], number)
        if not _gone(pid, patience_s):
            _send([psutil.Process(pid), *children], signal.SIGKILL)
            _gone(pid, patience_s)


def strays(slurm_conf: str) -> list[int]:
    """Node daemons and tasks of the cluster that has this slurm.conf; not a shell that merely talks to it."""
    found = []
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            environment = process.environ()
            if environment.get("SLURM_CONF") == slurm_conf and (
                "SLURMD_NODENAME" in environment or process.name() in ("slurmd", "slurmstepd")
            ):
                found.append(process.pid)
    return [pid for pid in found if pid != os.getpid()]


def _gone(pid: int, patience_s: float) -> bool:
    deadline = time.monotonic() + patience_s
    while started(pid):
        if time.monotonic() > deadline:
            return False
        time.sleep(POLL_S)
    return True


def _send(processes: Iterable[psutil.Process], number: signal.Signals) -> None:
    for process in processes:
        with suppress(psutil.NoSuchProcess):
            process.send_signal(number)
