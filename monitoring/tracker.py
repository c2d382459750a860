"""MLflow: parameters, metrics and artifacts of a run, sent by a background thread so that training never waits.

The thread imports mlflow (a second or more), creates the run, and sends buffered points by `log_batch`. A store that
fails never reaches the training loop: it is reported once, on stderr and as the event `tracking_error`; unsent points
are tried again at every flush, and metrics.jsonl has them all in any case.
"""

import contextlib
import json
import logging
import os
import re
import shlex
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import FileLock

from configs.flatten import flatten
from configs.schema import Config
from monitoring.recorder import Status, append_event, read_metrics

if TYPE_CHECKING:
    from mlflow import MlflowClient

RUN_ID = "mlflow_run_id"
STATUS_TAG = "steadytrain.status"
ARTIFACTS = ("config.yaml", "study.yaml", "summary.json", "events.jsonl", "report.html", "*.png")
FLUSH_SECONDS = 2.0
CLOSE_SECONDS = 60.0
STOP_SECONDS = 5.0  # a stopped run is about to be killed; what was not sent is sent when it goes on
UI_KIND = {"mlflow.experimentKind": "custom_model_development"}  # the UI opens on runs and charts, not on chat traces
BATCH = 1000  # MLflow's limit for one request
MAX_PENDING = 200_000  # points kept while a store is out of reach; later ones are in metrics.jsonl only
MLFLOW_STATUS = {"finished": "FINISHED", "diverged": "FAILED", "stopped": "KILLED", "failed": "FAILED"}
"""Ours is kept as a tag. A run that stopped to be started again is RUNNING once more when it is."""

Point = tuple[str, float, int, int]  # key, value, timestamp in ms, step: the order of mlflow.entities.Metric


class Tracker:
    """One MLflow run. `log` only appends to a list; everything else happens in the thread.

    A run folder that already names its MLflow run (`mlflow_run_id`) continues that run.
    """

    def __init__(self, config: Config, run_dir: Path) -> None:
        self.config, self.run_dir = config, run_dir
        self.uri = tracking_uri(config)
        self._points: list[Point] = []
        self._resumed: int | None = None  # a step to go on from, until the store has been asked what it has
        self._arrived: dict[str, int] = {}  # the last step of each key that the store had then
        self._lock = threading.Lock()
        self._closing = threading.Event()
        self._started = threading.Event()  # the MLflow run exists, or could not be created
        self._status: Status = "failed"
        self._step = 0
        self._run_id: str | None = None
        self._client: MlflowClient | None = None
        self._reported = False
        # A daemon: a process that dies without `close` must not hang on its tracker.
        self._thread = threading.Thread(target=self._work, name="mlflow", daemon=True)
        self._thread.start()

    @staticmethod
    def open(config: Config, run_dir: Path) -> "Tracker | NoTracker":
        """The tracker that `config.tracking` asks for; returns at once."""
        run_dir.mkdir(parents=True, exist_ok=True)
        return NoTracker() if config.tracking.kind == "none" else Tracker(config, run_dir)

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Queue the numbers of one step. Never blocks, never raises."""
        now = int(time.time() * 1000)
        with self._lock:
            self._step = step
            if len(self._points) < MAX_PENDING:
                self._points += [(key, float(value), now, step) for key, value in metrics.items()]

    def resume(self, step: int) -> None:
        """Go on after `step`, with metrics.jsonl cut to it; to be called before the first `log`.

        MLflow cannot take a point back, so that steps trained a second time are not sent a second time; what the store
        lacks up to `step` (a killed run's last seconds) is sent from metrics.jsonl.
        """
        with self._lock:
            self._resumed = step

    def run_id(self, timeout: float = CLOSE_SECONDS) -> str | None:
        """Wait for the MLflow run; None when the store could not create it in time."""
        self._started.wait(timeout)
        return self._run_id

    def close(self, status: Status) -> None:
        """Send what is left, the artifacts and the status; waits at most a minute, of a stopped run some seconds."""
        self._status = status
        self._closing.set()
        seconds = STOP_SECONDS if status == "stopped" else CLOSE_SECONDS
        self._thread.join(seconds)
        if self._thread.is_alive():
            self._report(f"not reached within {seconds:.0f} s of the end")

    def _work(self) -> None:
        closing = False
        while not closing:
            closing = self._closing.wait(FLUSH_SECONDS) if self._started.is_set() else self._closing.is_set()
            try:
                self._send(closing)
            except Exception as error:  # noqa: BLE001 (whatever store or network do, training goes on)
                self._report(_one_line(error))
            self._started.set()

    def _send(self, closing: bool) -> None:
        """Everything queued; when closing, also the artifacts and the status."""
        if self._client is None:
            self._client = connect(self.uri)
        client = self._client
        if self._run_id is None:
            with _creation_lock(self.uri):
                self._run_id = _start_run(client, self.config, self.run_dir, self.uri)
            self._started.set()
        self._send_points(client, self._run_id)
        if closing:
            for path in _artifacts(self.run_dir):
                client.log_artifact(self._run_id, str(path))
            client.set_tag(self._run_id, STATUS_TAG, self._status)
            client.set_terminated(self._run_id, status=MLFLOW_STATUS[self._status])

    def _send_points(self, client: "MlflowClient", run_id: str) -> None:
        """Send what is queued in batches, removing each batch once it has arrived."""
        while True:
            with self._lock:
                resumed, batch = self._resumed, self._points[:BATCH]
            if resumed is not None:
                self._catch_up(client, run_id, resumed)
                continue
            if not batch:
                return
            _log_points(client, run_id, [point for point in batch if self._is_new(point)])
            with self._lock:
                del self._points[: len(batch)]

    def _catch_up(self, client: "MlflowClient", run_id: str, step: int) -> None:
        """Ask the store what it has of a resumed run, and send what it lacks up to `step`."""
        # Points are sent in the order of their steps, so that the last one of a key tells of all before.
        self._arrived = {metric.key: metric.step for metric in client.get_run(run_id).data.to_proto().metrics}
        now = int(time.time() * 1000)
        points = [
            (key, value, now, record["step"])
            for record in read_metrics(self.run_dir)
            for key, value in record.items()
            if key != "step" and record["step"] <= step
        ]
        missing = [point for point in points if self._is_new(point)]
        for first in range(0, len(missing), BATCH):
            _log_points(client, run_id, missing[first : first + BATCH])
        with self._lock:
            self._resumed = None

    def _is_new(self, point: Point) -> bool:
        key, _, _, step = point
        return step > self._arrived.get(key, -1)

    def _report(self, reason: str) -> None:
        if self._reported:
            return
        self._reported = True
        reason = _without_password(f"MLflow at {self.uri}: {reason}")
        with contextlib.suppress(OSError):  # stderr may be a closed pipe, the disk may be full: nothing left to tell
            sys.stderr.write(f"{reason}; every point stays in {self.run_dir / 'metrics.jsonl'}\n")
            append_event(self.run_dir, self._step, "tracking_error", reason)


class NoTracker:
    """`tracking.kind: none`: the run folder is all there is."""

    def log(self, step: int, metrics: Mapping[str, float]) -> None: ...

    def resume(self, step: int) -> None: ...

    def run_id(self, timeout: float = 0.0) -> str | None:
        return None

    def close(self, status: Status) -> None: ...


def tracking_uri(config: Config) -> str:
    """`tracking.uri`, else MLFLOW_TRACKING_URI, else an SQLite file in the runs folder."""
    return config.tracking.uri or os.environ.get("MLFLOW_TRACKING_URI") or default_uri(config.run.dir)


def default_uri(runs_dir: Path) -> str:
    """The SQLite store `mlflow.db` of a runs folder."""
    return f"sqlite:///{runs_dir.resolve() / 'mlflow.db'}"


def ui_command(uri: str) -> str:
    """What to type to look at a store; of a server, its address."""
    if uri.startswith("http"):
        return uri
    mlflow = Path(sys.executable).with_name("mlflow")  # this environment's, on the PATH or not
    return f"{shlex.quote(str(mlflow))} ui --backend-store-uri {shlex.quote(uri)}"


def mark_failed(config: Config, run_dir: Path) -> None:
    """Close the MLflow run of a process that was killed before it could do so itself; a closed run is left as it is.

    Raises: nothing; a store that fails is reported on stderr.
    """
    _mark(config, run_dir, "failed", "FAILED", instead_of=("RUNNING",))


def mark_cancelled(config: Config, run_dir: Path) -> None:
    """Close the MLflow run of a job that was cancelled, also one that stopped to go on; a finished one stays.

    Raises: nothing; a store that fails is reported on stderr.
    """
    _mark(config, run_dir, "cancelled", "KILLED", instead_of=("RUNNING", "KILLED"))


def _mark(config: Config, run_dir: Path, tag: str, status: str, *, instead_of: tuple[str, ...]) -> None:
    id_file = run_dir / RUN_ID
    if config.tracking.kind == "none" or not id_file.exists():
        return
    uri, run_id = tracking_uri(config), id_file.read_text().strip()
    try:
        client = connect(uri)
        if client.get_run(run_id).info.status in instead_of:
            client.set_tag(run_id, STATUS_TAG, tag)
            client.set_terminated(run_id, status=status)
    except Exception as error:  # noqa: BLE001 (as in `Tracker._work`)
        sys.stderr.write(_without_password(f"MLflow at {uri}: {_one_line(error)}") + "\n")


def connect(uri: str) -> "MlflowClient":
    """A client of the store; creates and migrates an SQLite store, one process at a time."""
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")  # the next flush tries again anyway
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")
    from mlflow import MlflowClient

    for name in ("mlflow", "alembic"):  # "Creating initial MLflow database tables ..." and forty migrations
        logging.getLogger(name).setLevel(logging.WARNING)
    if (path := _sqlite_path(uri)) is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
    with _creation_lock(uri):
        client = MlflowClient(tracking_uri=uri)
        client.get_experiment_by_name("")  # opens the store, which creates its tables
        return client


def _start_run(client: "MlflowClient", config: Config, run_dir: Path, uri: str) -> str:
    """The id of the run this folder belongs to: continued where the store knows it, else created."""
    from mlflow.entities import Param, RunTag
    from mlflow.exceptions import MlflowException

    id_file = run_dir / RUN_ID
    if id_file.exists():
        run_id = id_file.read_text().strip()
        with contextlib.suppress(MlflowException):  # the store was replaced: a new run
            client.update_run(run_id, status="RUNNING")
            client.set_tag(run_id, STATUS_TAG, "running")
            return run_id
    tags = {"mlflow.source.name": "steadytrain", "steadytrain.run_dir": str(run_dir), STATUS_TAG: "running"}
    if config.tracking.parent_run_id:
        tags["mlflow.parentRunId"] = config.tracking.parent_run_id
    experiment_id = _experiment(client, config.tracking.experiment, uri)
    run_id = client.create_run(experiment_id, run_name=config.run.name).info.run_id
    client.log_batch(run_id, tags=[RunTag(key, value) for key, value in tags.items()])
    values = flatten(config.model_dump(mode="json", exclude={"tracking"}))
    params = [Param(key, _as_text(value)[:6000]) for key, value in values]
    for first in range(0, len(params), 100):  # MLflow's limits: 100 parameters a request, 6000 characters each
        client.log_batch(run_id, params=params[first : first + 100])
    id_file.write_text(run_id + "\n")
    return run_id


def _experiment(client: "MlflowClient", name: str, uri: str) -> str:
    from mlflow.exceptions import MlflowException

    found = client.get_experiment_by_name(name)
    if found is None:
        path = _sqlite_path(uri)  # a server knows where artifacts go; of SQLite, MLflow puts them in the working folder
        location = None if path is None else (path.parent / "mlflow-artifacts" / name).as_uri()
        try:
            return client.create_experiment(name, artifact_location=location, tags=UI_KIND)
        except MlflowException:  # another process was faster
            found = client.get_experiment_by_name(name)
            if found is None:
                raise
    return found.experiment_id


def _log_points(client: "MlflowClient", run_id: str, points: list[Point]) -> None:
    from mlflow.entities import Metric

    if points:
        client.log_batch(run_id, metrics=[Metric(*point) for point in points])


def _as_text(value: Any) -> str:
    """A parameter's value for MLflow; lists as JSON."""
    return json.dumps(value) if isinstance(value, list) else str(value)


def _artifacts(run_dir: Path) -> Iterator[Path]:
    for pattern in ARTIFACTS:
        yield from sorted(run_dir.glob(pattern))


@contextlib.contextmanager
def _creation_lock(uri: str) -> Iterator[None]:
    """MLflow migrates an SQLite store without a lock of its own: two first runs at once would break it."""
    path = _sqlite_path(uri)
    if path is None:
        yield
        return
    with FileLock(f"{path}.lock", timeout=CLOSE_SECONDS):
        yield


def _sqlite_path(uri: str) -> Path | None:
    return Path(uri.removeprefix("sqlite:///")).absolute() if uri.startswith("sqlite:///") else None


def _one_line(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error).strip() else 'no message'}"


def _without_password(text: str) -> str:
    return re.sub(r"(?<=//)[^/@\s]+@", "", text)
