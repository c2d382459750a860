"""The tracking store in force: can it be reached, and written? Nothing is left in it.

Training never waits for it: where it fails, points stay in the run's folder until it is back (docs/tracking.md).
"""

import os
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from launcher.doctor.finding import Asked, Finding, ok, problem, warning
from launcher.doctor.sqlite_store import check_file, has_tables
from monitoring.mlflow_store import default_uri, failure, without_password

if TYPE_CHECKING:
    from mlflow import MlflowClient

REQUEST_SECONDS = 5
LONGEST = 200
"""Characters of an error that are shown: some are pages of HTML."""
NAME, WRITING, VERSION = "MLflow", "MLflow writing", "MLflow version"


def check(asked: Asked) -> Iterator[Finding]:
    """The store of `--tracking-uri`, else MLFLOW_TRACKING_URI, else the runs folder's own."""
    os.environ["MLFLOW_HTTP_REQUEST_TIMEOUT"] = str(REQUEST_SECONDS)
    os.environ["MLFLOW_HTTP_REQUEST_MAX_RETRIES"] = "0"
    os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"
    uri = asked.tracking_uri or os.environ.get("MLFLOW_TRACKING_URI") or default_uri(Path(asked.runs))
    if not uri.startswith("sqlite:///"):
        yield from store(uri)
        return
    sound, path = True, Path(uri.removeprefix("sqlite:///")).absolute()
    for finding in check_file(path):
        sound = sound and finding.verdict == "ok"
        yield finding
    if sound and has_tables(path):
        yield from store(uri)  # its tables are those of this MLflow, or opening it fails


def store(uri: str) -> Iterator[Finding]:
    """A store as MLflow's client sees it: a server, or a database."""
    try:
        from mlflow import MlflowClient  # in here: what it brings may be broken too

        client = MlflowClient(tracking_uri=uri)  # not `connect`: that leaves a lock beside an SQLite store
        experiments = client.search_experiments(max_results=1)
    except Exception as error:  # noqa: BLE001 (whatever store or network do is a line of the report)
        yield problem(NAME, _shown(uri, error), fix(error))
        return
    yield ok(NAME, f"{without_password(uri)} answers")
    if uri.startswith("http"):
        yield _version(uri)
        if experiments:
            yield _writing(uri, client, experiments[0].name)


def fix(error: BaseException) -> str:
    """What to do about an exception, told by the one that MLflow and requests wrap."""
    from mlflow.exceptions import MlflowException

    cause = error
    while (deeper := cause.__cause__ or cause.__context__) is not None:
        cause = deeper
    address = "Look at --tracking-uri or MLFLOW_TRACKING_URI"
    if isinstance(cause, TimeoutError):
        return "it hangs, or a firewall drops what is sent: restart the server, or try from another network"
    if isinstance(cause, socket.gaierror):
        return f"there is no such host. {address}"
    if isinstance(cause, ConnectionError):
        return f"nothing listens there: start the server (`mlflow server`). {address}"
    if isinstance(cause, ImportError):
        return "install the database's driver beside MLflow, or use a server's address"
    code = cause.get_http_status_code() if isinstance(cause, MlflowException) else None
    if code in (401, 403):
        return "set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or MLFLOW_TRACKING_TOKEN"
    if "out-of-date database schema" in str(cause):
        return "made by another version of MLflow: back it up, then `mlflow db upgrade URI`"
    if "500 error responses" in str(cause):
        return "the server fails: look into its log, and at its own store"
    return f"is it an MLflow store? {address}"


def _writing(uri: str, client: "MlflowClient", taken: str) -> Finding:
    """By creating an experiment whose name is taken: the database refuses the row only when it writes it."""
    from mlflow.exceptions import MlflowException

    try:
        client.create_experiment(taken)
    except MlflowException as error:
        if error.error_code == "RESOURCE_ALREADY_EXISTS":
            return ok(WRITING, "takes new entries (tried with one that it has to refuse)")
        return problem(WRITING, _shown(uri, error), fix(error))
    return warning(WRITING, f"it has two experiments called {taken} now", "it is no MLflow server that we know")


def _version(uri: str) -> Finding:
    """The server's, against this environment's client."""
    from mlflow.exceptions import MlflowException
    from mlflow.utils.credentials import get_default_host_creds
    from mlflow.utils.rest_utils import http_request
    from mlflow.version import VERSION as client

    try:
        answer = http_request(get_default_host_creds(uri), "/version", "GET")
    except MlflowException:
        return ok(VERSION, f"client {client}; the server does not tell its own")
    server = answer.text.strip()
    if answer.status_code != 200 or not server[:1].isdigit():
        return ok(VERSION, f"client {client}; the server does not tell its own")
    if server.partition(".")[0] != client.partition(".")[0]:
        fix = f"`pip install mlflow=={server}` here, or upgrade the server: different major versions may not agree"
        return warning(VERSION, f"server {server}, client {client}", fix)
    return ok(VERSION, f"server {server}, client {client}")


def _shown(uri: str, error: Exception) -> str:
    line = failure(uri, error).removeprefix("MLflow at ").splitlines()[0]
    return line if len(line) <= LONGEST else f"{line[:LONGEST]}..."
