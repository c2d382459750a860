"""Real processes: ranks are started, their first failure is told once, and none is left behind."""

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

ROOT = Path(__file__).parents[2]
CONFIG = "data: {sources: [{path: x}]}\ntracking: {kind: none}\nmodel: {layers: 4}\n"
CALL = """\
import sys
from pathlib import Path
from launcher import cli, train
train.train.__kwdefaults__["entry"] = "tests.launcher.ranks:" + sys.argv.pop(1)
cli.main()
"""
PATIENCE = 60


class Launched:
    """`steadytrain train` with a stand-in for the training, as a process of its own."""

    def __init__(self, entry: str, *arguments: str, launcher: tuple[str, ...] = (sys.executable,)) -> None:
        script = Path("call.py")
        script.write_text(CALL)
        Path("c.yaml").write_text(CONFIG)
        environ = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
        self.process = subprocess.Popen(
            [*launcher, str(script), entry, "train", "c.yaml", *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=environ | {"PYTHONPATH": f"{ROOT}"},
        )

    def wait(self) -> tuple[int, str, str]:
        stdout, stderr = self.process.communicate(timeout=PATIENCE)
        return self.process.returncode, stdout, stderr

    def ranks(self, count: int) -> list[psutil.Process]:
        """The processes of all ranks, once all of them are in the training."""
        notes = [Path(f"runs/run/note-{rank}") for rank in range(count)]
        wait_until(lambda: all(note.exists() for note in notes) or self.process.poll() is not None)
        assert self.process.poll() is None, self.wait()
        return [psutil.Process(int(note.read_text().splitlines()[0])) for note in notes]


def wait_until(condition: Callable[[], bool]) -> None:
    pause = threading.Event()
    for _ in range(PATIENCE * 50):
        if condition():
            return
        pause.wait(0.02)
    raise TimeoutError


def assert_gone(ranks: list[psutil.Process]) -> None:
    _, alive = psutil.wait_procs(ranks, timeout=10)
    assert not alive


@pytest.fixture
def start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Launched]]:
    """Launch, and end what a failing test leaves behind."""
    monkeypatch.chdir(tmp_path)
    launched: list[Launched] = []

    def start(*args, **kwargs) -> Launched:
        launched.append(Launched(*args, **kwargs))
        return launched[-1]

    yield start
    for one in launched:
        if one.process.poll() is None:
            for child in psutil.Process(one.process.pid).children(recursive=True):
                child.kill()
            one.process.kill()
            one.process.communicate()


def test_each_rank_knows_who_it_is(start):
    code, stdout, stderr = start("finish", "parallel.tp=2").wait()
    assert (code, stdout) == (
        0,
        "starting 2 processes\noutput of rank 0\nruns/run: finished, validation loss 2.5000\n",
    ), stderr
    assert stderr == "progress of rank 0\n"
    for rank in (0, 1):
        values = dict(line.split("=") for line in Path(f"runs/run/note-{rank}").read_text().splitlines()[1:])
        assert values.pop("MASTER_PORT").isdigit()
        assert values == {
            "RANK": str(rank),
            "LOCAL_RANK": str(rank),
            "WORLD_SIZE": "2",
            "MASTER_ADDR": "127.0.0.1",
            "OMP_NUM_THREADS": "1",
        }
    assert Path("runs/run/logs/rank-1.out").read_text() == "output of rank 1\n"
    assert Path("runs/run/logs/rank-1.err").read_text() == "progress of rank 1\n"
    assert "dp: 1" in Path("runs/run/config.yaml").read_text()


def test_nproc_adds_data_parallel_ranks(start):
    code, _, stderr = start("finish", "--nproc", "2").wait()
    assert code == 0, stderr
    assert "dp: 2" in Path("runs/run/config.yaml").read_text()


def test_one_process_needs_no_launcher(start):
    code, stdout, stderr = start("finish").wait()
    assert (code, stderr) == (0, "progress of rank 0\n")
    assert stdout.startswith("output of rank 0\n")
    assert "RANK=0\nLOCAL_RANK=0\nWORLD_SIZE=1\nMASTER_ADDR=127.0.0.1" in Path("runs/run/note-0").read_text()


def test_a_diverged_run_has_its_exit_code(start):
    code, stdout, stderr = start("diverge", "parallel.tp=2").wait()
    assert (code, stdout, stderr) == (3, "starting 2 processes\nruns/run: diverged\n", "")


def test_the_rank_that_failed_is_named_and_the_others_are_ended(start):
    launched = start("crash_on_rank_1", "parallel.tp=2")
    code, _, stderr = launched.wait()
    assert stderr == (
        "rank 1 failed: ValueError: the tensor has the wrong shape; all ranks were ended; "
        "traceback in runs/run/logs/rank-1.traceback\n"
    )
    assert code == 1
    assert "raise ValueError" in Path("runs/run/logs/rank-1.traceback").read_text()
    pids = [int(Path(f"runs/run/note-{rank}").read_text().split()[0]) for rank in (0, 1)]
    assert not any(psutil.pid_exists(pid) for pid in pids)


def test_the_cause_is_told_and_not_its_cascade(start):
    code, _, stderr = start("crash_with_a_cascade", "parallel.tp=2").wait()
    assert (code, stderr.split(";")[0]) == (1, "rank 1 failed: ValueError: the cause")


def test_a_user_s_mistake_found_by_every_rank_is_told_once(start):
    code, stdout, stderr = start("user_error_on_every_rank", "parallel.tp=2").wait()
    assert (code, stdout) == (2, "starting 2 processes\n")
    assert stderr == "runs/data/none: no such dataset; make it with steadytrain prepare\n"


def test_a_rank_that_exits_without_a_word_is_named(start):
    code, _, stderr = start("exit_without_a_word", "parallel.tp=2").wait()
    assert (code, stderr) == (
        1,
        "rank 1 exited with code 7; all ranks were ended; its output is in runs/run/logs/rank-1.err\n",
    )


def test_a_killed_rank_ends_the_others(start):
    launched = start("hang", "parallel.tp=2")
    ranks = launched.ranks(2)
    ranks[1].kill()
    code, _, stderr = launched.wait()
    assert_gone(ranks)
    assert (code, stderr) == (
        1,
        "rank 1 was killed by SIGKILL (out of memory?); all ranks were ended; "
        "its output is in runs/run/logs/rank-1.err\n",
    )


@pytest.mark.parametrize(
    ("number", "code", "message"),
    [
        (signal.SIGINT, 130, "interrupted\n"),
        (signal.SIGTERM, 143, "ended by SIGTERM: all 2 ranks were ended\n"),
        (signal.SIGKILL, -9, ""),
    ],
)
def test_no_rank_outlives_the_command(start, number, code, message):
    launched = start("hang", "parallel.tp=2")
    ranks = launched.ranks(2)
    launched.process.send_signal(number)
    assert launched.wait()[0::2] == (code, message)
    assert_gone(ranks)


def test_torchrun_may_start_the_ranks(start):
    torchrun = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
    code, stdout, stderr = start("finish", "parallel.tp=2", launcher=torchrun).wait()
    assert code == 0, stderr
    assert stdout.count("runs/run: finished") == 1
    assert sorted(path.name for path in Path("runs/run").glob("note-*")) == ["note-0", "note-1"]


def test_a_run_folder_deleted_under_the_run_is_no_traceback(start):
    code, _, stderr = start("lose_the_folder", "parallel.tp=2").wait()
    assert code == 1
    assert stderr.splitlines() == [
        "FileNotFoundError: [Errno 2] No such file or directory: 'runs/run/metrics.jsonl'",
        "rank 0 exited with code 1; all ranks were ended; its output is above",
    ]
