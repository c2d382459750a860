"""Requests to MLflow: finding or creating a run, points, tags, files, and how a run ended. Training never calls this.

A request takes `REQUEST_SECONDS` at most and is not repeated by MLflow itself: who asks knows what became of it.
"""

import contextlib
import json
import logging
import os
import re
import shlex
import sys
import uuid
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import FileLock

from configs.flatten import flatten
from configs.schema import Config
from monitoring.recorder import describe

if TYPE_CHECKING:
    from mlflow import MlflowClient

RUN_ID = "mlflow_run_id"
STATUS_TAG, REASON_TAG, ATTEMPTS_TAG = "steadytrain.status", "steadytrain.reason", "steadytrain.attempts"
CREATION_TAG = "steadytrain.creation"
CREATION = "tracking/creation"
UI_KIND = {"mlflow.experimentKind": "custom_model_development"}  # the UI opens on runs and charts, not on chat traces
REQUEST_SECONDS = 10
SECONDS_TO_CREATE = 60.0
BATCH, PARAMS, TAGS = 1000, 100, 100  # MLflow's limits for one request
LOST = "its processes ended without a word: killed, out of memory, or the machine failed"
MLFLOW_STATUS = {"finished": "FINISHED", "diverged": "FAILED", "stopped": "KILLED", "failed": "FAILED"}
"""Ours is kept as a tag. A run that stopped to be started again is RUNNING once more when it is."""

Point = tuple[str, float, int, int]  # key, value, timestamp in ms, step: the order of mlflow.entities.Metric


def tracking_uri(config: Config) -> str:
    """`tracking.uri`, else MLFLOW_TRACKING_URI, else an SQLite file in the runs folder."""
    return config.tracking.uri or os.environ.get("MLFLOW_TRACKING_URI") or default_uri(config.run.dir)


def default_uri(runs_dir: Path) -> str:
    """The SQLite store `mlflow.db` of a runs folder."""
    return f"sqlite:///{runs_dir.resolve() / 'mlflow.db'}"


def absolute_uri(uri: str) -> str:
    """The same store, from any working folder."""
    path = _sqlite_path(uri)
    return uri if path is None else f"sqlite:///{path}"


def ui_command(uri: str) -> str:
    """What to type to look at a store; of a server, its address."""
    if uri.startswith("http"):
        return uri
    mlflow = Path(sys.executable).with_name("mlflow")  # this environment's, on the PATH or not
    return f"{shlex.quote(str(mlflow))} ui --backend-store-uri {shlex.quote(uri)}"


def failure(uri: str, error: Exception) -> str:
    """What went wrong with a store, in one line that does not tell its password."""
    cause: BaseException = error
    while (deeper := cause.__cause__ or cause.__context__) is not None:  # MLflow and requests wrap what happened
        cause = deeper
    return without_password(f"MLflow at {uri}: {describe(cause)}")


def without_password(text: str) -> str:
    """The text with no user and password in the addresses of it."""
    return re.sub(r"(?<=//)[^/@\s]+@", "", text)


def connect(uri: str) -> "MlflowClient":
    """A client of the store; creates and migrates an SQLite store, one process at a time."""
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", str(REQUEST_SECONDS))
    os.environ.setdefault("MLFLOW_ARTIFACT_UPLOAD_DOWNLOAD_TIMEOUT", str(REQUEST_SECONDS))
    from mlflow import MlflowClient

    for name in ("mlflow", "alembic"):  # "Creating initial MLflow database tables ..." and forty migrations
        logging.getLogger(name).setLevel(logging.WARNING)
    if (path := _sqlite_path(uri)) is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
    with _creation_lock(uri):
        client = MlflowClient(tracking_uri=uri)
        client.get_experiment_by_name("Default")  # opens the store, which creates its tables
        return client


def find_run(client: "MlflowClient", run_dir: Path) -> str | None:
    """The id of the run that a run folder names; None if it names none that this store has."""
    from mlflow.exceptions import MlflowException

    id_file = run_dir / RUN_ID
    if not id_file.exists():
        return None
    run_id = id_file.read_text().strip()
    try:
        found = client.get_run(run_id)
    except MlflowException as error:
        if error.error_code == "RESOURCE_DOES_NOT_EXIST":  # the store was replaced
            return None
        raise
    return None if found.info.lifecycle_stage == "deleted" else run_id


def create_run(client: "MlflowClient", config: Config, run_dir: Path, uri: str) -> str:
    """A new run, named by the run folder from now on. Where an earlier try may have come through, its run is taken."""
    from mlflow.entities import Param

    with _creation_lock(uri):
        experiment_id = _experiment(client, config.tracking.experiment, uri)
        run_id = _earlier_try(client, experiment_id, run_dir)
        if run_id is None:
            key = uuid.uuid4().hex
            (run_dir / CREATION).write_text(key)
            run_id = _create(client, config, run_dir, experiment_id, key)
    values = flatten(config.model_dump(mode="json", exclude={"tracking", "alerts"}))
    params = [Param(key, _as_text(value)[:6000]) for key, value in values]  # 6000 characters each: MLflow's limit
    for first in range(0, len(params), PARAMS):
        client.log_batch(run_id, params=params[first : first + PARAMS])
    (run_dir / RUN_ID).write_text(run_id + "\n")
    (run_dir / CREATION).unlink(missing_ok=True)
    return run_id


def _create(client: "MlflowClient", config: Config, run_dir: Path, experiment_id: str, key: str) -> str:
    tags = {"mlflow.source.name": "steadytrain", "steadytrain.run_dir": str(run_dir), CREATION_TAG: key}
    if config.tracking.parent_run_id:
        tags["mlflow.parentRunId"] = config.tracking.parent_run_id
    return client.create_run(experiment_id, run_name=config.run.name, tags=tags).info.run_id


def _earlier_try(client: "MlflowClient", experiment_id: str, run_dir: Path) -> str | None:
    """The run of a creation whose answer was lost, or that was killed before it could name the run."""
    path = run_dir / CREATION
    if not path.exists():
        return None
    found = client.search_runs([experiment_id], f"tags.`{CREATION_TAG}` = '{path.read_text()}'", max_results=1)
    return found[0].info.run_id if found else None


def log_points(client: "MlflowClient", run_id: str, points: Sequence[Point], *, certain: bool = True) -> None:
    """Send points, any number of them. Unless it is `certain` that none has arrived before, ask for them first."""
    from mlflow.entities import Metric

    new = points if certain else missing(client, run_id, points)
    for first in range(0, len(new), BATCH):
        client.log_batch(run_id, metrics=[Metric(*point) for point in new[first : first + BATCH]])


def missing(client: "MlflowClient", run_id: str, points: Sequence[Point]) -> list[Point]:
    """Those points that the run does not have; a point is named by its key, time and step."""
    newest = {metric.key: metric.step for metric in client.get_run(run_id).data.to_proto().metrics}
    doubtful = {key for key, _, _, step in points if step <= newest.get(key, -1)}  # of others it has no such step
    have = {
        (key, metric.timestamp, metric.step)
        for key in sorted(doubtful)
        for metric in client.get_metric_history(run_id, key)
    }
    return [point for point in points if (point[0], point[2], point[3]) not in have]


def set_tags(client: "MlflowClient", run_id: str, tags: Mapping[str, str]) -> None:
    """Set tags, any number of them."""
    from mlflow.entities import RunTag

    entities = [RunTag(key, value[:5000]) for key, value in tags.items()]  # 5000 characters each: MLflow's limit
    for first in range(0, len(entities), TAGS):
        client.log_batch(run_id, tags=entities[first : first + TAGS])


def mark_failed(config: Config, run_dir: Path) -> None:
    """Close the MLflow run of a process that was killed before it could do so itself; a closed run is left as it is.

    Raises: nothing; a store that fails is reported on stderr.
    """
    _mark(config, run_dir, "failed", "FAILED", instead_of=("RUNNING",))


def mark_cancelled(config: Config, run_dir: Path) -> None:
    """Close the MLflow run of a job that was cancelled, also one that stopped to go on, or had to be killed for it.

    A run that ended by itself stays as it is. Raises: nothing; a store that fails is reported on stderr.
    """
    _mark(config, run_dir, "cancelled", "KILLED", instead_of=("RUNNING", "KILLED"))


def mark_stopped(config: Config, run_dir: Path, reason: str) -> None:
    """Close the MLflow run of a trial that its sweep has ended early, and say why; also of one that had to be killed.

    Raises: nothing; a store that fails is reported on stderr.
    """
    instead_of = ("RUNNING", "KILLED", "FAILED")
    _mark(config, run_dir, "stopped early", "KILLED", instead_of=instead_of, reason=reason)


def _mark(
    config: Config, run_dir: Path, tag: str, status: str, *, instead_of: tuple[str, ...], reason: str | None = None
) -> None:
    id_file = run_dir / RUN_ID
    if config.tracking.kind == "none" or not id_file.exists():
        return
    uri, run_id = tracking_uri(config), id_file.read_text().strip()
    try:
        client = connect(uri)
        run = client.get_run(run_id)
        killed = tag == "cancelled" and run.data.tags.get(REASON_TAG) == LOST  # the watchdog was faster
        if run.info.status in instead_of or killed:
            client.set_tag(run_id, STATUS_TAG, tag)
            if reason is not None:
                client.set_tag(run_id, REASON_TAG, reason)
            client.set_terminated(run_id, status=status)
    except Exception as error:  # noqa: BLE001 (whatever store or network do, it must not hide how the run ended)
        sys.stderr.write(failure(uri, error) + "\n")


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


def _as_text(value: Any) -> str:
    """A parameter's value for MLflow; lists as JSON."""
    return json.dumps(value) if isinstance(value, list) else str(value)


@contextlib.contextmanager
def _creation_lock(uri: str) -> Iterator[None]:
    """MLflow migrates an SQLite store without a lock of its own: two first runs at once would break it."""
    path = _sqlite_path(uri)
    if path is None:
        yield
        return
    with FileLock(f"{path}.lock", timeout=SECONDS_TO_CREATE):
        yield


def _sqlite_path(uri: str) -> Path | None:
    return Path(uri.removeprefix("sqlite:///")).absolute() if uri.startswith("sqlite:///") else None
