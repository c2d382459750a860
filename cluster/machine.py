"""Holds together what descends from a daemon, as the power switch of a machine and the cgroup of a step do elsewhere.

Run as a script, with the standard library alone:

    python -I -S machine.py run SLURMD ARGUMENT...         one machine: starts slurmd, stays until killed
    python -I -S machine.py become SLURMSTEPD ARGUMENT...  one step: turns into its daemon

Both are child subreapers (prctl(2)): a process whose parent has died becomes their child. So killing the tree below a
machine misses nothing, and Slurm, which without cgroups knows a step's processes by their parents
(proctrack/linuxproc), finds those that have left their session too. At SIGUSR1 a machine starts slurmd again if it is
gone.
"""

import ctypes
import os
import signal
import sys
from typing import NoReturn

PR_SET_CHILD_SUBREAPER = 36
IGNORED_BY_PYTHON = {signal.SIGPIPE, signal.SIGXFSZ}


def main(mode: str, command: list[str]) -> NoReturn:
    """Adopt orphans from now on, and run or become `command`."""
    if ctypes.CDLL(None, use_errno=True).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_CHILD_SUBREAPER)")
    if mode == "become":
        for number in IGNORED_BY_PYTHON:  # exec keeps what is ignored, down to the tasks
            signal.signal(number, signal.SIG_DFL)
        os.execv(command[0], command)
    awaited = {signal.SIGCHLD, signal.SIGUSR1}
    signal.pthread_sigmask(signal.SIG_BLOCK, awaited)
    running = _spawn(command)
    while True:
        received = signal.sigwait(awaited)
        if running in _reap():
            running = 0
        if received == signal.SIGUSR1 and not running:
            running = _spawn(command)


def _spawn(command: list[str]) -> int:
    return os.posix_spawn(command[0], command, os.environ, setsigmask=[], setsigdef=IGNORED_BY_PYTHON)


def _reap() -> set[int]:
    """The children that have ended, zombies no longer."""
    gone: set[int] = set()
    while True:
        try:
            pid, _ = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return gone
        if pid == 0:
            return gone
        gone.add(pid)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
