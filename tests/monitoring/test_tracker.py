"""MLflow: what arrives, what a failing store does (nothing to training), and how runs end."""

import os
import shlex
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from configs.schema import Config, DataConfig, DataSource, RunConfig, TrackingConfig
from monitoring import delivery, mlflow_store, tracker
from monitoring.mlflow_store import default_uri, mark_cancelled, mark_failed, tracking_uri, ui_command
from monitoring.recorder import Recorder, read_events, read_metrics
from monitoring.tracker import NoTracker, Tracker

ROOT = Path(__file__).parents[2]


def config_in(folder: Path, **tracking) -> Config:
    return Config(
        run=RunConfig(name="run", dir=folder),
        data=DataConfig(sources=[DataSource(path=Path("corpus"))]),
        tracking=TrackingConfig(**tracking),
    )


def stored_run(config: Config):
    """The MLflow run that the run folder names, and a client."""
    client = mlflow_store.connect(tracking_uri(config))
    return client.get_run((config.run_dir / "mlflow_run_id").read_text().strip()), client


def test_a_run_arrives_whole(tmp_path: Path):
    config = config_in(tmp_path, experiment="tests", parent_run_id="parent")
    with Recorder(config.run_dir, Tracker.open(config, config.run_dir)) as recorder:
        (config.run_dir / "config.yaml").write_text("resolved")
        for step in range(1, 2501):  # more than two requests
            recorder.log(step, loss=1 / step, grad_norm=float("nan") if step == 7 else 1.0)
        recorder.summary({"status": "finished"})
    run, client = stored_run(config)
    assert run.info.status == "FINISHED"
    assert run.info.run_name == "run"
    assert run.data.params["model.hidden_size"] == "64"
    assert run.data.params["data.sources"] == '[{"path": "corpus", "weight": 1.0}]'
    assert not any(key.startswith("tracking.") for key in run.data.params)
    assert run.data.tags["mlflow.parentRunId"] == "parent"
    history = client.get_metric_history(run.info.run_id, "loss")
    assert sorted((point.step, point.value) for point in history) == [(step, 1 / step) for step in range(1, 2501)]
    assert {file.path for file in client.list_artifacts(run.info.run_id)} == {"config.yaml", "summary.json"}
    assert run.info.artifact_uri.startswith((tmp_path / "mlflow-artifacts").as_uri())
    assert os.environ["MLFLOW_DISABLE_TELEMETRY"] == "true"


@pytest.mark.parametrize(("status", "expected"), [("diverged", "FAILED"), ("failed", "FAILED")])
def test_the_end_is_told_truly(tmp_path: Path, status, expected):
    config = config_in(tmp_path)
    Tracker.open(config, config.run_dir).close(status)
    run, _ = stored_run(config)
    assert (run.info.status, run.data.tags["steadytrain.status"]) == (expected, status)


def test_an_exception_in_training_fails_the_run(tmp_path: Path):
    config = config_in(tmp_path)
    with (
        pytest.raises(ZeroDivisionError),
        Recorder(config.run_dir, Tracker.open(config, config.run_dir)) as recorder,
    ):
        recorder.log(1, loss=1 / 0)
    assert stored_run(config)[0].info.status == "FAILED"


def test_a_run_folder_continues_its_run(tmp_path: Path):
    config = config_in(tmp_path)
    for step in (1, 2):
        run = Tracker.open(config, config.run_dir)
        run.log(step, {"loss": 1.0})
        run.close("failed" if step == 1 else "finished")
    found, client = stored_run(config)
    assert found.info.status == "FINISHED"
    assert len(client.get_metric_history(found.info.run_id, "loss")) == 2


def loss_at(step: int) -> float:
    return 5 - step / 10


def train(config: Config, first: int, last: int, resumed: int | None = None) -> Recorder:
    """What a run of `last` steps logs: the validation loss at every tenth, a measurement at every fifth."""
    recorder = Recorder(config.run_dir, Tracker.open(config, config.run_dir))
    if resumed is not None:
        recorder.resume(resumed)
    for step in range(first, last + 1):
        extra = {"val_loss": loss_at(step)} if step % 10 == 0 else {}
        extra |= {"entropy_mean": float("nan")} if step % 5 == 0 else {}
        recorder.log(step, loss=loss_at(step), **extra)
    return recorder


def assert_one_point_per_step(config: Config) -> None:
    run, client = stored_run(config)
    for key, every in (("loss", 1), ("val_loss", 10), ("entropy_mean", 5)):
        points = client.get_metric_history(run.info.run_id, key)
        assert [point.step for point in sorted(points, key=lambda point: point.step)] == list(range(every, 41, every))
    values = {point.step: point.value for point in client.get_metric_history(run.info.run_id, "loss")}
    assert values == {step: loss_at(step) for step in range(1, 41)}


def test_a_resumed_run_has_one_point_per_step(tmp_path: Path):
    config = config_in(tmp_path)
    train(config, 1, 30).close("failed")  # interrupted at 30; its newest checkpoint is of step 20
    first, client = stored_run(config)
    resumed = train(config, 21, 40, resumed=20)
    assert isinstance(resumed.tracker, Tracker) and resumed.tracker.run_id() == first.info.run_id
    running = client.get_run(first.info.run_id)
    assert (running.info.status, running.data.tags["steadytrain.status"]) == ("RUNNING", "running")
    resumed.close("finished")
    ended = client.get_run(first.info.run_id)
    assert (ended.info.status, ended.data.tags["steadytrain.status"]) == ("FINISHED", "finished")
    assert_one_point_per_step(config)


def test_steps_trained_under_another_configuration_are_sent_as_new_points(tmp_path: Path):
    """MLflow would else keep the steps of the learning rate that was given up, and refuse the others."""
    config = config_in(tmp_path)
    train(config, 1, 30).close("failed")
    lower = config.model_copy(update={"optimizer": config.optimizer.model_copy(update={"lr": 1e-5})})
    train(lower, 21, 40, resumed=20).close("finished")
    run, client = stored_run(config)
    points = client.get_metric_history(run.info.run_id, "loss")
    assert sorted(point.step for point in points) == sorted([*range(1, 31), *range(21, 41)])


def test_what_a_killed_run_had_not_sent_yet_is_sent_when_it_goes_on(tmp_path: Path, monkeypatch):
    config = config_in(tmp_path)
    train(config, 1, 12).close("failed")
    monkeypatch.setattr(Tracker, "_work", lambda self: None)  # killed before the next flush
    train(config, 13, 30)
    monkeypatch.undo()
    train(config, 21, 40, resumed=20).close("finished")
    assert_one_point_per_step(config)


def test_a_resumed_run_goes_whole_into_a_store_that_was_replaced(tmp_path: Path):
    config = config_in(tmp_path)
    train(config, 1, 30).close("failed")
    elsewhere = config_in(tmp_path, uri=f"sqlite:///{tmp_path}/new.db")
    train(elsewhere, 21, 40, resumed=20).close("finished")
    assert_one_point_per_step(elsewhere)


def test_catching_up_survives_a_store_that_fails_in_the_middle(tmp_path: Path, monkeypatch, capfd):
    config = config_in(tmp_path)
    Tracker.open(config, config.run_dir).close("failed")
    with Recorder(config.run_dir) as recorder:
        for step in range(1, 21):
            recorder.log(step, loss=loss_at(step), **({"val_loss": loss_at(step)} if step % 10 == 0 else {}))
    monkeypatch.setattr(delivery, "BATCH", 7)
    monkeypatch.setattr(tracker, "FLUSH_SECONDS", 0.01)
    send, sent, failed = mlflow_store.log_points, [], threading.Event()

    def fail_once(client, run_id, points, *, certain):
        sent.append(points)
        if len(sent) == 2:
            failed.set()
            raise ConnectionError("gone")
        send(client, run_id, points, certain=certain)

    monkeypatch.setattr(mlflow_store, "log_points", fail_once)
    run = Tracker.open(config, config.run_dir)
    run.resume(20)
    run.log(21, {"loss": loss_at(21)})
    assert failed.wait(60)
    run.close("finished")
    found, client = stored_run(config)
    assert sorted(point.step for point in client.get_metric_history(found.info.run_id, "loss")) == list(range(1, 22))
    assert "ConnectionError: gone" in capfd.readouterr().err


def test_a_killed_run_is_closed_afterwards_and_an_ended_one_left_alone(tmp_path: Path):
    config = config_in(tmp_path)
    killed = Tracker.open(config, config.run_dir)
    assert killed.run_id() is not None
    assert stored_run(config)[0].info.status == "RUNNING"
    mark_failed(config, config.run_dir)
    assert stored_run(config)[0].info.status == "FAILED"
    killed.close("finished")
    mark_failed(config, config.run_dir)
    assert stored_run(config)[0].info.status == "FINISHED"


def test_a_cancelled_run_is_closed_also_after_it_stopped_and_a_finished_one_left_alone(tmp_path: Path):
    config = config_in(tmp_path)
    stopped = Tracker.open(config, config.run_dir)
    assert stopped.run_id() is not None
    stopped.close("stopped")
    mark_cancelled(config, config.run_dir)
    run = stored_run(config)[0]
    assert (run.info.status, run.data.tags["steadytrain.status"]) == ("KILLED", "cancelled")
    again = Tracker.open(config, config.run_dir)
    assert again.run_id() is not None
    mark_cancelled(config, config.run_dir)
    assert stored_run(config)[0].info.status == "KILLED"
    again.close("finished")
    mark_cancelled(config, config.run_dir)
    run = stored_run(config)[0]
    assert (run.info.status, run.data.tags["steadytrain.status"]) == ("FINISHED", "finished")


START = """
import sys
import threading
from pathlib import Path
from tests.monitoring.test_tracker import config_in
from monitoring.tracker import Tracker
config = config_in(Path(sys.argv[1]))
run = Tracker.open(config, config.run_dir / sys.argv[2])
run.log(1, {"loss": 1.0})
run.close("finished")
"""


def test_several_first_runs_at_once(tmp_path: Path):
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    started = [
        subprocess.Popen([sys.executable, "-c", START, str(tmp_path), name], env=environment, stderr=subprocess.PIPE)
        for name in ("a", "b", "c")
    ]
    errors = [process.communicate()[1].decode() for process in started]
    assert errors == ["", "", ""]
    client = mlflow_store.connect(default_uri(tmp_path))
    experiment = client.get_experiment_by_name("steadytrain")
    assert [run.info.status for run in client.search_runs([experiment.experiment_id])] == ["FINISHED"] * 3


def test_a_store_out_of_reach_is_reported_once_and_training_goes_on(tmp_path: Path, monkeypatch, capfd):
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    monkeypatch.setattr(tracker, "FLUSH_SECONDS", 0.01)
    config = config_in(tmp_path, uri="http://somebody:secret@127.0.0.1:9")  # the discard port: nobody listens
    run = Tracker.open(config, config.run_dir)
    assert run.run_id() is None
    with Recorder(config.run_dir, run) as recorder:
        for step in range(1, 4):
            recorder.log(step, loss=1.0)
    assert len(read_metrics(config.run_dir)) == 3
    events = read_events(config.run_dir)
    assert [event["kind"] for event in events] == ["tracking_error"]
    stderr = capfd.readouterr().err
    assert stderr.count("MLflow at http://127.0.0.1:9: ") == 2
    assert "every point stays in" in stderr and f"or by: steadytrain sync {config.run_dir}" in stderr
    assert "secret" not in stderr + str(events)


def test_points_wait_for_a_store_that_comes_back(tmp_path: Path, capfd):
    blocked = tmp_path / "store"
    blocked.write_text("a file where the store's folder should be")
    config = config_in(tmp_path, uri=f"sqlite:///{blocked}/mlflow.db")
    run = Tracker.open(config, config.run_dir)
    run.log(1, {"loss": 2.0})
    assert run.run_id() is None
    assert [event["kind"] for event in read_events(config.run_dir)] == ["tracking_error"]
    blocked.unlink()
    run.log(2, {"loss": 1.0})
    run.close("finished")
    found, client = stored_run(config)
    assert found.info.status == "FINISHED"
    assert [point.value for point in client.get_metric_history(found.info.run_id, "loss")] == [2.0, 1.0]


def test_where_runs_go(tmp_path: Path, monkeypatch):
    config = config_in(tmp_path)
    assert tracking_uri(config) == f"sqlite:///{tmp_path}/mlflow.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:5000")
    assert tracking_uri(config) == "http://127.0.0.1:5000"
    assert tracking_uri(config_in(tmp_path, uri="sqlite:///x.db")) == "sqlite:///x.db"
    program, *rest = shlex.split(ui_command("sqlite:///a folder/x.db"))
    assert Path(program).parent == Path(sys.executable).parent and os.access(program, os.X_OK)
    assert [Path(program).name, *rest] == ["mlflow", "ui", "--backend-store-uri", "sqlite:///a folder/x.db"]


def test_none_writes_nothing(tmp_path: Path):
    config = config_in(tmp_path, kind="none")
    run = Tracker.open(config, config.run_dir)
    assert isinstance(run, NoTracker)
    run.log(1, {"loss": 1.0})
    run.close("finished")
    assert list(tmp_path.iterdir()) == [config.run_dir]
