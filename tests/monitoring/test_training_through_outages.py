"""`steadytrain train` while its MLflow server answers 500, freezes, dies and returns: the losses know nothing of it."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from monitoring.recorder import read_events, read_metrics
from monitoring.spool import attempts
from tests.monitoring.servers import Proxy, Server, wait_until
from tests.monitoring.test_tracker import ROOT

STEPS = 1500


def start(data: Path, runs: Path, *overrides: str) -> subprocess.Popen[bytes]:
    arguments = [f"data.sources.0.path={data}", f"run.dir={runs}", f"training.steps={STEPS}", *overrides]
    return subprocess.Popen(
        [sys.executable, "-m", "launcher", "train", "configs/tiny.yaml", *arguments],
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )


def losses(runs: Path) -> list[tuple[int, str]]:
    """Every loss, to the bit."""
    return [(record["step"], json.dumps(record["loss"])) for record in read_metrics(runs / "tiny")]


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_losses_are_those_of_an_undisturbed_run(
    stdlib_bytes: Path, tmp_path: Path, mlflow_server: Server, proxy: Proxy
) -> None:
    undisturbed = start(stdlib_bytes, tmp_path / "undisturbed", "tracking.kind=none")
    assert undisturbed.wait(300) == 0

    runs, run_dir = tmp_path / "disturbed", tmp_path / "disturbed" / "tiny"
    training = start(stdlib_bytes, runs, f"tracking.uri={proxy.uri}")

    def told(kind: str, times: int) -> bool:
        return sum(event["kind"] == kind for event in read_events(run_dir)) == times

    def has_steps(more: int) -> None:
        """Training goes on while the store does not answer."""
        now = len(read_metrics(run_dir))
        assert now + more < STEPS, "too fast a machine: the run ends before the outages"
        wait_until(lambda: len(read_metrics(run_dir)) >= now + more, f"{more} steps")

    try:
        wait_until((run_dir / "mlflow_run_id").exists, "the MLflow run")
        proxy.answer = "refuse"
        wait_until(lambda: told("tracking_error", 1), "the first outage")
        has_steps(20)
        proxy.answer = "pass"
        wait_until(lambda: told("tracking_restored", 1), "its end")
        mlflow_server.freeze()
        has_steps(20)
        mlflow_server.thaw()
        mlflow_server.kill()
        has_steps(20)
        mlflow_server.start()
        assert training.wait(300) == 0
    finally:
        training.kill()
        training.wait()
    wait_until(lambda: not attempts(run_dir), "delivery")

    assert losses(runs) == losses(tmp_path / "undisturbed")
    run_id = (run_dir / "mlflow_run_id").read_text().strip()
    found = mlflow_server.client().get_metric_history(run_id, "loss")
    assert sorted((metric.step, json.dumps(metric.value)) for metric in found) == losses(runs)
    assert mlflow_server.client().get_run(run_id).info.status == "FINISHED"
