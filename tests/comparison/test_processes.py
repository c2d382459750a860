"""No process outlives its trial, whatever it started and however deaf it is."""

import contextlib
import os
import sys
from pathlib import Path

import psutil
import pytest

from comparison import processes
from comparison.processes import TrialProcess
from tests.comparison.conftest import fake_train

LEAVE_A_CHILD = """
import subprocess, sys
print(subprocess.Popen([sys.executable, "-c", "import signal; signal.pause()"]).pid)
"""


@pytest.fixture
def hanging(study_file: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[TrialProcess, list[int]]:
    """A trial deaf to SIGTERM, with children as deaf in its session and in one of their own."""
    monkeypatch.setattr(processes, "GRACE_SECONDS", 0.2)
    config = Path("hang.yaml")
    config.write_text("run: {name: hang}\ndata: {sources: [{path: x}]}\n")
    fifo = make_fifo(Path("runs/hang"))
    process = TrialProcess(fake_train(lambda _: "hang")(config), Path("out"), Path("err"))
    return process, [process.pid, *(int(pid) for pid in fifo.read_text().split())]


def test_stop_ends_the_whole_family(hanging):
    process, pids = hanging
    assert all(is_running(pid) for pid in pids)
    process.stop()
    assert not any(is_running(pid) for pid in pids)


def test_what_a_trial_leaves_in_its_session_ends_with_it(tmp_path: Path):
    process = TrialProcess([sys.executable, "-c", LEAVE_A_CHILD], tmp_path / "out", tmp_path / "err")
    assert exit_code(process) == 0
    left = int((tmp_path / "out").read_text())
    with contextlib.suppress(psutil.NoSuchProcess):
        psutil.wait_procs([psutil.Process(left)], timeout=10)  # SIGKILL was sent; the kernel may need a moment
    assert not is_running(left)


def test_exit_code_and_output_are_kept(tmp_path: Path):
    script = "import sys; print('out'); sys.stderr.write('err'); sys.exit(3)"
    process = TrialProcess([sys.executable, "-c", script], tmp_path / "log" / "out", tmp_path / "log" / "err")
    assert exit_code(process) == 3
    assert [(tmp_path / "log" / name).read_text().strip() for name in ("out", "err")] == ["out", "err"]
    process.stop()  # of an ended trial: nothing to do


def exit_code(process: TrialProcess) -> int | None:
    """Waits without reaping, which is `poll`'s."""
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
    return process.poll()


def make_fifo(run_dir: Path) -> Path:
    """Where a hanging stand-in tells its children's pids; reading it waits for them."""
    run_dir.mkdir(parents=True)
    os.mkfifo(run_dir / "pids")
    return run_dir / "pids"


def is_running(pid: int) -> bool:
    """A zombie that nobody has reaped yet no longer runs."""
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
