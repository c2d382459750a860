"""A training run ended from outside, real processes: none is left, and MLflow does not show it RUNNING for ever."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

from monitoring.recorder import read_metrics

ROOT = Path(__file__).parents[2]


@contextmanager
def training(data: Path, runs: Path, *overrides: str) -> Iterator[subprocess.Popen]:
    """`steadytrain train` of a long run, handed over once it has trained a step and has its MLflow run."""
    arguments = [f"data.sources.0.path={data}", f"run.dir={runs}", "training.steps=1000000", *overrides]
    process = subprocess.Popen(
        [sys.executable, "-m", "launcher", "train", "configs/tiny.yaml", *arguments],
        cwd=ROOT,
        stderr=subprocess.PIPE,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    try:
        run_dir = runs / "tiny"
        wait_for(lambda: (run_dir / "mlflow_run_id").exists() and read_metrics(run_dir), process)
        yield process
    finally:
        for child in [*psutil.Process(process.pid).children(recursive=True)] if process.poll() is None else []:
            child.kill()
        process.kill()
        process.wait()


def wait_for(condition: Callable[[], object], process: subprocess.Popen) -> None:
    deadline = time.monotonic() + 120
    while not condition():
        assert process.poll() is None, process.stderr.read().decode()  # type: ignore[union-attr]
        assert time.monotonic() < deadline, "the run did not start in two minutes"
        time.sleep(0.1)


def mlflow_status(runs: Path) -> str:
    from monitoring.mlflow_store import connect, default_uri

    return connect(default_uri(runs)).get_run((runs / "tiny" / "mlflow_run_id").read_text().strip()).info.status


@pytest.mark.parametrize(
    "parallel",
    [pytest.param([], id="one process"), pytest.param(["parallel.tp=2"], id="tp2", marks=pytest.mark.slow)],
)
def test_sigterm(stdlib_bytes: Path, tmp_path: Path, parallel: list[str]) -> None:
    with training(stdlib_bytes, tmp_path, *parallel) as process:
        family = psutil.Process(process.pid).children(recursive=True)
        watchdogs = [child for child in family if "monitoring.watchdog" in child.cmdline()]
        ranks = [child for child in family if child not in watchdogs]
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 143
    assert not any(rank.is_running() and rank.status() != psutil.STATUS_ZOMBIE for rank in ranks)
    assert len(watchdogs) == 1
    assert not psutil.wait_procs(watchdogs, timeout=120)[1]  # it outlives the ranks that could not end their run
    assert mlflow_status(tmp_path) == "FAILED"


def test_kill_9_of_the_rank_that_tracks(stdlib_bytes: Path, tmp_path: Path) -> None:
    with training(stdlib_bytes, tmp_path, "parallel.tp=2") as process:
        ranks = [
            child
            for child in psutil.Process(process.pid).children(recursive=True)
            if "launcher.worker" in child.cmdline()
        ]
        rank_0 = next(rank for rank in ranks if rank.environ()["RANK"] == "0")
        rank_0.kill()
        assert process.wait(90) == 1
        message = process.stderr.read().decode()  # type: ignore[union-attr]
    assert "rank 0 was killed by SIGKILL" in message and "Traceback" not in message
    assert not any(rank.is_running() and rank.status() != psutil.STATUS_ZOMBIE for rank in ranks)
    assert mlflow_status(tmp_path) == "FAILED"
