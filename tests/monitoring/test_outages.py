"""A real MLflow server that loses answers, answers 500, freezes, dies and returns: every point arrives exactly once."""

import json
import os
import signal
import socket
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from configs.errors import ConfigError
from configs.schema import Config
from launcher.sync import sync
from monitoring import mlflow_store, tracker
from monitoring.recorder import Recorder, read_events
from monitoring.spool import attempts
from monitoring.tracker import Tracker
from tests.monitoring.servers import Proxy, Server, wait_until
from tests.monitoring.test_tracker import ROOT, config_in


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Short pauses and short requests: these tests are about what arrives, not about when."""
    monkeypatch.setattr(tracker, "FLUSH_SECONDS", 0.05)
    monkeypatch.setattr(tracker, "MAX_PAUSE_SECONDS", 0.2)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "2")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")


class Stream:
    """A run that logs a step whenever it is told to."""

    def __init__(self, config: Config, first: int = 1) -> None:
        self.config, self.step = config, first - 1
        tracking = Tracker.open(config, config.run_dir)
        assert isinstance(tracking, Tracker)
        self.tracker = tracking
        self.recorder = Recorder(config.run_dir, tracking)

    def train(self, steps: int) -> None:
        for _ in range(steps):
            self.step += 1
            grad_norm = float("nan") if self.step % 7 == 0 else 1.0
            self.recorder.log(self.step, loss=1 / self.step, grad_norm=grad_norm)

    def events(self) -> list[str]:
        return [event["kind"] for event in read_events(self.config.run_dir)]

    def wait_for(self, kind: str) -> None:
        wait_until(lambda: kind in self.events(), kind)


def points(server: Server, config: Config, key: str) -> list[tuple[int, float]]:
    found = server.client().get_metric_history(run_id(config), key)
    return sorted((metric.step, metric.value) for metric in found)


def run_id(config: Config) -> str:
    return (config.run_dir / "mlflow_run_id").read_text().strip()


def assert_all_arrived_once(server: Server, config: Config, steps: int, status: str = "FINISHED") -> None:
    assert points(server, config, "loss") == [(step, 1 / step) for step in range(1, steps + 1)]
    assert [step for step, _ in points(server, config, "grad_norm")] == list(range(1, steps + 1))
    assert server.client().get_run(run_id(config)).info.status == status


def delivered(server: Server, config: Config, steps: int) -> None:
    path = config.run_dir / "mlflow_run_id"
    wait_until(lambda: path.exists() and len(points(server, config, "loss")) == steps, f"{steps} steps in the store")


def test_answers_that_are_lost(mlflow_server: Server, proxy: Proxy, tmp_path: Path) -> None:
    """The store has the points and we do not know it: they are asked for and not sent again."""
    config = config_in(tmp_path, uri=proxy.uri)
    stream = Stream(config)
    stream.train(20)
    delivered(mlflow_server, config, 20)
    proxy.answer, proxy.only = "swallow", "/log-batch"
    stream.train(20)
    stream.wait_for("tracking_error")
    assert proxy.treated["swallow"] >= 1
    proxy.answer = "pass"
    stream.train(20)
    stream.wait_for("tracking_restored")
    stream.recorder.close("finished")
    assert stream.events() == ["tracking_error", "tracking_restored"]
    assert proxy.passed["get-history"] >= 1
    assert_all_arrived_once(mlflow_server, config, 60)


def test_a_store_that_does_not_recognise_what_it_has(mlflow_server: Server, proxy: Proxy, tmp_path: Path, monkeypatch):
    """Exactly once is not left to the SQL store, which takes an identical point twice as one: we do not send it."""
    sent: Counter[tuple] = Counter()
    send = mlflow_store.log_points

    def count(client, run, batch, *, certain):
        arrived = {id(point): point for point in (batch if certain else mlflow_store.missing(client, run, batch))}
        send(client, run, batch, certain=certain)
        sent.update((point[0], point[3]) for point in arrived.values() if not point[0].startswith("system/"))

    monkeypatch.setattr(mlflow_store, "log_points", count)
    config = config_in(tmp_path, uri=proxy.uri)
    stream = Stream(config)
    stream.train(5)
    delivered(mlflow_server, config, 5)
    proxy.answer, proxy.only = "swallow", "/log-batch"
    stream.train(5)
    stream.wait_for("tracking_error")
    proxy.answer = "pass"
    stream.wait_for("tracking_restored")
    stream.recorder.close("finished")
    # The batch whose answer was lost arrived by the request that failed, and is in no request that succeeded.
    assert set(sent.values()) == {1}
    assert not {("loss", step) for step in range(6, 11)} & set(sent)
    assert_all_arrived_once(mlflow_server, config, 10)


def test_answers_of_500_from_the_start_and_in_the_middle(mlflow_server: Server, proxy: Proxy, tmp_path: Path) -> None:
    config = config_in(tmp_path, uri=proxy.uri)
    proxy.answer = "refuse"
    stream = Stream(config)
    stream.train(10)
    stream.wait_for("tracking_error")
    assert not (config.run_dir / "mlflow_run_id").exists()
    proxy.answer = "pass"
    stream.wait_for("tracking_restored")
    delivered(mlflow_server, config, 10)
    proxy.answer = "refuse"
    stream.train(10)
    wait_until(lambda: stream.events().count("tracking_error") == 2, "second tracking_error")
    proxy.answer = "pass"
    wait_until(lambda: stream.events().count("tracking_restored") == 2, "second tracking_restored")
    stream.recorder.close("finished")
    restored = [event["points"] for event in read_events(config.run_dir) if event["kind"] == "tracking_restored"]
    assert restored[1] >= 20
    assert_all_arrived_once(mlflow_server, config, 20)


def test_a_run_whose_creation_was_not_answered_is_not_created_twice(
    mlflow_server: Server, proxy: Proxy, tmp_path: Path
) -> None:
    config = config_in(tmp_path, uri=proxy.uri, experiment="created once")
    proxy.answer, proxy.only = "swallow", "/runs/create"
    stream = Stream(config)
    stream.train(3)
    stream.wait_for("tracking_error")
    proxy.answer = "pass"
    stream.wait_for("tracking_restored")
    stream.recorder.close("finished")
    experiment = mlflow_server.client().get_experiment_by_name("created once")
    (run,) = mlflow_server.client().search_runs([experiment.experiment_id])
    assert run.info.run_id == run_id(config)
    assert_all_arrived_once(mlflow_server, config, 3)


def test_a_server_that_freezes_dies_and_comes_back(mlflow_server: Server, tmp_path: Path) -> None:
    config = config_in(tmp_path, uri=mlflow_server.uri)
    stream = Stream(config)
    stream.train(20)
    delivered(mlflow_server, config, 20)
    mlflow_server.freeze()
    stream.train(20)  # returns although nobody answers
    stream.wait_for("tracking_error")
    mlflow_server.thaw()
    stream.wait_for("tracking_restored")
    delivered(mlflow_server, config, 40)
    mlflow_server.kill()
    try:
        stream.train(20)
        wait_until(lambda: stream.events().count("tracking_error") == 2, "second tracking_error")
    finally:
        mlflow_server.start()
    stream.train(20)
    stream.recorder.close("finished")
    assert_all_arrived_once(mlflow_server, config, 80)
    assert not attempts(config.run_dir)


def test_steps_trained_anew_after_a_rollback_are_new_points(mlflow_server: Server, tmp_path: Path) -> None:
    config = config_in(tmp_path, uri=mlflow_server.uri)
    stream = Stream(config)
    stream.train(30)
    stream.recorder.event(30, "rollback", "to step 20")
    stream.recorder.rollback(20)
    stream.step = 20
    stream.train(5)
    stream.recorder.close("stopped")  # ... and attempts after it
    again = Stream(config, first=23)
    again.recorder.resume(22)
    again.train(18)
    again.recorder.close("finished")
    found = mlflow_server.client().get_metric_history(run_id(config), "loss")
    in_time = [metric.step for metric in sorted(found, key=lambda metric: metric.timestamp)]
    assert in_time == [*range(1, 31), *range(21, 26), *range(26, 41)]


def test_files_tags_and_the_machines_load(mlflow_server: Server, tmp_path: Path) -> None:
    config = config_in(tmp_path, uri=mlflow_server.uri)
    for folder in ("pictures", "spikes"):
        (config.run_dir / folder).mkdir(parents=True)
    (config.run_dir / "pictures" / "loss.png").write_text("picture")
    (config.run_dir / "spikes" / "000003-loss.npz").write_text("record")
    stream = Stream(config)
    stream.train(3)
    for step in (1, 3):
        stream.recorder.event(step, "alarm", "the entropy fell")
    delivered(mlflow_server, config, 3)
    client = mlflow_server.client()
    wait_until(lambda: client.get_metric_history(run_id(config), "system/cpu_utilization_percentage"), "system metrics")
    stream.recorder.close("stopped")
    run = client.get_run(run_id(config))
    assert run.info.status == "KILLED"
    assert run.data.tags["steadytrain.events.alarm"] == "2"
    attempt = json.loads(run.data.tags["steadytrain.attempt.1"])
    assert attempt["host"] == socket.gethostname() and attempt["status"] == "stopped"
    assert attempt["started"] <= attempt["ended"]
    paths = {
        file.path for folder in ("pictures", "spikes", "") for file in client.list_artifacts(run.info.run_id, folder)
    }
    assert paths == {"pictures", "pictures/loss.png", "spikes", "spikes/000003-loss.npz", "events.jsonl"}


def test_what_is_left_at_the_end_is_sent_by_sync(
    mlflow_server: Server, proxy: Proxy, tmp_path: Path, watchdogs: list[int]
) -> None:
    config = config_in(tmp_path, uri=proxy.uri)
    stream = Stream(config)
    stream.train(10)
    delivered(mlflow_server, config, 10)
    os.kill(watchdogs[0], signal.SIGKILL)
    proxy.answer = "refuse"
    stream.train(10)
    stream.recorder.close("finished")
    assert mlflow_server.client().get_run(run_id(config)).info.status == "RUNNING"
    proxy.answer = "pass"
    assert sync(config.run_dir).endswith("points delivered; the run has finished")
    assert_all_arrived_once(mlflow_server, config, 20)
    assert sync(config.run_dir).endswith("all points were delivered already")


def test_the_end_of_an_attempt_that_never_reached_the_store_replaces_that_of_the_one_before(
    mlflow_server: Server, proxy: Proxy, tmp_path: Path, watchdogs: list[int]
) -> None:
    config = config_in(tmp_path, uri=proxy.uri)
    stream = Stream(config)
    stream.train(10)
    stream.recorder.close("stopped")
    assert mlflow_server.client().get_run(run_id(config)).info.status == "KILLED"
    proxy.answer = "refuse"
    again = Stream(config, first=11)
    os.kill(watchdogs[1], signal.SIGKILL)
    again.recorder.resume(10)
    again.train(10)
    again.recorder.close("finished")
    proxy.only = "/runs/update"  # the last request of a delivery
    with pytest.raises(ConfigError, match=r"0 points of .* still wait"):
        sync(config.run_dir)
    proxy.answer = "pass"
    sync(config.run_dir)
    assert_all_arrived_once(mlflow_server, config, 20)


def test_what_is_left_at_the_end_is_sent_by_the_watchdog(mlflow_server: Server, proxy: Proxy, tmp_path: Path) -> None:
    config = config_in(tmp_path, uri=proxy.uri)
    stream = Stream(config)
    stream.train(10)
    delivered(mlflow_server, config, 10)
    proxy.answer = "refuse"
    stream.train(10)
    stream.recorder.close("diverged")
    assert attempts(config.run_dir) == [1]
    proxy.answer = "pass"
    wait_until(lambda: not attempts(config.run_dir), "delivery by the watchdog")
    assert_all_arrived_once(mlflow_server, config, 20, "FAILED")
    assert mlflow_server.client().get_run(run_id(config)).data.tags["steadytrain.status"] == "diverged"


TRAIN = """
import sys, time
from pathlib import Path
from tests.monitoring.test_outages import Stream
from tests.monitoring.test_tracker import config_in
stream = Stream(config_in(Path(sys.argv[1]), uri=sys.argv[2]))
stream.train(10)
stream.tracker.run_id()
print("ready", flush=True)
sys.stdin.readline()
stream.train(10)
print("trained", flush=True)
sys.stdin.readline()
"""


def start(config: Config) -> subprocess.Popen[str]:
    """A run in a process group of its own, which has its MLflow run and ten steps."""
    process = subprocess.Popen(
        [sys.executable, "-c", TRAIN, str(config.run.dir), str(config.tracking.uri)],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert process.stdout is not None and process.stdout.readline() == "ready\n"
    return process


def train_ten_and_kill(process: subprocess.Popen[str]) -> None:
    assert process.stdin is not None and process.stdout is not None
    process.stdin.write("\n")
    process.stdin.flush()
    assert process.stdout.readline() == "trained\n"
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    process.stdin.close()
    assert process.stdout.read() == ""  # the end of the file: the watchdog does not hold it open
    process.stdout.close()


def test_kill_9_of_the_whole_process_group_is_repaired_by_the_watchdog(mlflow_server: Server, tmp_path: Path) -> None:
    config = config_in(tmp_path, uri=mlflow_server.uri)
    process = start(config)
    assert mlflow_server.client().get_run(run_id(config)).info.status == "RUNNING"
    train_ten_and_kill(process)
    wait_until(lambda: not attempts(config.run_dir), "delivery by the watchdog")
    assert_all_arrived_once(mlflow_server, config, 20, "FAILED")
    tags = mlflow_server.client().get_run(run_id(config)).data.tags
    assert (tags["steadytrain.status"], tags["steadytrain.attempts"]) == ("failed", "1")
    assert "killed" in tags["steadytrain.reason"] and "killed" in tags["steadytrain.attempt.1"]
    assert [event["kind"] for event in read_events(config.run_dir)] == ["failed"]


def test_the_next_attempt_takes_over_from_the_watchdog(mlflow_server: Server, proxy: Proxy, tmp_path: Path) -> None:
    config = config_in(tmp_path, uri=proxy.uri)
    process = start(config)
    delivered(mlflow_server, config, 10)
    proxy.answer = "refuse"
    train_ten_and_kill(process)
    wait_until(lambda: (config.run_dir / "events.jsonl").exists(), "the watchdog at work")
    again = Stream(config, first=16)
    again.recorder.resume(15)  # its newest checkpoint
    again.train(15)
    proxy.answer = "pass"
    delivered(mlflow_server, config, 30)
    assert mlflow_server.client().get_run(run_id(config)).info.status == "RUNNING"
    again.recorder.close("finished")
    assert_all_arrived_once(mlflow_server, config, 30)
    tags = mlflow_server.client().get_run(run_id(config)).data.tags
    assert "killed" in tags["steadytrain.attempt.1"] and '"status": "finished"' in tags["steadytrain.attempt.2"]
    assert tags["steadytrain.attempts"] == "2" and tags["steadytrain.events.failed"] == "1"
