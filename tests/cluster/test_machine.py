"""A machine holds every process that descends from it, and dies with all of them."""

import os
import signal
from contextlib import suppress
from pathlib import Path

import psutil

from cluster import processes
from cluster.files import machine
from tests.slurm import until


def names(pid: int) -> list[str]:
    """The last words of the command lines of all that descends from a process."""
    found = []
    for process in psutil.Process(pid).children(recursive=True):
        with suppress(psutil.ZombieProcess, psutil.NoSuchProcess):
            found += process.cmdline()[-1:]
    return sorted(found)


def pending_signals(pid: int) -> int:
    (line,) = [line for line in Path(f"/proc/{pid}/status").read_text().splitlines() if line.startswith("ShdPnd:")]
    return int(line.split()[1], 16)


def start_machine(script: str, log: Path) -> int:
    return processes.spawn([*machine("run"), "/bin/bash", "-c", script], {"PATH": os.defpath}, log)


def test_processes_that_leave_their_session_and_lose_their_parent_still_die(tmp_path: Path) -> None:
    pid = start_machine("trap '' TERM; setsid --fork sleep 621; (sleep 622 &); sleep 623; :", tmp_path / "log")
    try:
        until(lambda: {"621", "622", "623"} <= set(names(pid)), 10, "all three run")
        below = psutil.Process(pid).children(recursive=True)
    finally:
        processes.power_off(pid)
    assert processes.started(pid) is None
    assert not [process for process in below if processes.started(process.pid)]


def test_a_signal_starts_the_daemon_again_only_when_it_is_gone(tmp_path: Path) -> None:
    pid = start_machine("exec sleep 624", tmp_path / "log")
    try:
        until(lambda: names(pid) == ["624"], 10, "the daemon runs")
        psutil.Process(pid).children()[0].kill()
        until(lambda: names(pid) == [], 10, "it is gone")
        os.kill(pid, signal.SIGUSR1)
        until(lambda: names(pid) == ["624"], 10, "it runs again")
        os.kill(pid, signal.SIGUSR1)
        until(lambda: not pending_signals(pid), 10, "the second signal has been taken")
        assert names(pid) == ["624"]
    finally:
        processes.power_off(pid)


def test_a_zombie_and_another_process_of_the_same_pid_are_not_it(tmp_path: Path) -> None:
    pid = processes.spawn(["/bin/sleep", "60"], {}, tmp_path / "log")
    began = processes.started(pid)
    assert began
    os.kill(pid, signal.SIGKILL)
    until(lambda: processes.started(pid) is None, 5, "it is gone")
    assert processes.started(os.getpid()) != began
