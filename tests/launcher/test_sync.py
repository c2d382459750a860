"""`steadytrain sync`: mistakes are one line and exit code 2; a run under way is left alone."""

from pathlib import Path

import pytest
from filelock import FileLock
from typer.testing import CliRunner

from configs.errors import ConfigError
from configs.schema import Config, DataConfig, DataSource, RunConfig
from launcher.cli import app
from launcher.run_folder import lock_path
from launcher.sync import sync
from monitoring.mlflow_store import connect, default_uri
from monitoring.recorder import read_events
from monitoring.spool import Spool, attempts, write_config


def killed_run(runs: Path, uri: str | None = None) -> Path:
    """A run that was killed before anything was sent, its watchdog too."""
    config = Config(run=RunConfig(name="run", dir=runs), data=DataConfig(sources=[DataSource(path=Path("corpus"))]))
    spool = Spool(config.run_dir)
    write_config(config.run_dir, config, uri or default_uri(runs))
    for step in range(1, 11):
        spool.append(step=step, metrics={"loss": 1 / step})
    spool.close()
    return config.run_dir


def test_a_killed_run_is_delivered_and_has_failed(tmp_path: Path, monkeypatch):
    run_dir = killed_run(tmp_path)
    monkeypatch.chdir("/")  # the store is the run's, wherever one stands
    result = CliRunner().invoke(app, ["sync", str(run_dir)])
    assert result.exit_code == 0, result.output
    assert result.stdout.startswith(f"{run_dir}: 10 points delivered; the run has failed: its processes ended without")
    run_id = (run_dir / "mlflow_run_id").read_text().strip()
    client = connect(default_uri(tmp_path))
    run = client.get_run(run_id)
    assert (run.info.status, run.data.tags["steadytrain.status"]) == ("FAILED", "failed")
    assert len(client.get_metric_history(run_id, "loss")) == 10
    assert [event["kind"] for event in read_events(run_dir)] == ["failed"]
    assert attempts(run_dir) == []
    assert sync(run_dir) == f"{run_dir}: all points were delivered already"


def test_a_store_out_of_reach(tmp_path: Path):
    run_dir = killed_run(tmp_path, "http://somebody:secret@127.0.0.1:9")
    for _ in range(2):
        with pytest.raises(
            ConfigError, match=r"^MLflow at http://127.0.0.1:9: .*; 10 points of .* still wait$"
        ) as told:
            sync(run_dir)
        assert "secret" not in str(told.value)
    assert len(read_events(run_dir)) == 1  # the run failed once, however often one tries


def test_a_run_under_way(tmp_path: Path):
    run_dir = killed_run(tmp_path)
    with FileLock(lock_path(run_dir)), pytest.raises(ConfigError, match="run: is under way, and delivers its points"):
        sync(run_dir)
    assert attempts(run_dir) == [1]


def test_no_run(tmp_path: Path):
    result = CliRunner().invoke(app, ["sync", str(tmp_path / "nowhere")])
    assert result.exit_code == 2 and "nowhere: no such folder" in result.stderr
    (tmp_path / "untracked").mkdir()
    with pytest.raises(ConfigError, match="no attempt of a run was tracked in it"):
        sync(tmp_path / "untracked")
