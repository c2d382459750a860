"""Tracking stores absent, present and broken: files of SQLite, and servers."""

import shutil
import socket
import sqlite3
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from launcher.doctor import sqlite_store, tracking
from launcher.doctor.finding import Asked, Finding
from launcher.doctor.sqlite_store import check_file
from tests.monitoring.servers import Server, free_port


@pytest.fixture
def store(tmp_path: Path) -> Path:
    """The tables by which a store of MLflow's is told, with enough in them to be damaged."""
    path = tmp_path / "mlflow.db"
    with sqlite3.connect(path) as base:
        for name in ("experiments", "runs", "alembic_version"):
            base.execute(f"CREATE TABLE {name} (text)")
        base.executemany("INSERT INTO runs VALUES (?)", [("x" * 1000,)] * 50)
    base.close()
    return path


def last(path: Path) -> Finding:
    return list(check_file(path))[-1]


def test_a_store_that_is_well_stays_as_it_is(store: Path) -> None:
    before = store.read_bytes()
    assert [finding.verdict for finding in check_file(store)] == ["ok", "ok"]
    assert store.read_bytes() == before and list(store.parent.iterdir()) == [store]


def test_one_that_is_not_there_is_made_later(tmp_path: Path) -> None:
    assert last(tmp_path / "a" / "b.db").found.endswith("is not there yet: the first run makes it")
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "empty.db").touch()
    assert {finding.verdict for finding in check_file(tmp_path / "empty.db")} == {"ok"}


def test_files_that_are_no_store(tmp_path: Path, store: Path) -> None:
    (tmp_path / "text.db").write_text("no database\n" * 100)
    assert last(tmp_path / "text.db").found.endswith("file is not a database")
    with sqlite3.connect(tmp_path / "other.db") as base:
        base.execute("CREATE TABLE a (b)")
    assert "no MLflow store" in last(tmp_path / "other.db").found
    assert last(tmp_path).found.endswith("is a folder")
    assert last(store / "a.db").verdict == "problem"


def test_a_damaged_store(store: Path) -> None:
    content = bytearray(store.read_bytes())
    content[3 * 4096 :] = bytes(len(content) - 3 * 4096)
    store.write_bytes(content)
    assert last(store).verdict == "problem"


def test_a_store_that_cannot_be_written(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (store.parent / "mlflow.db-journal").mkdir()  # in the way, also of root
    found = last(store)
    assert (found.check, found.verdict) == ("MLflow writing", "problem")


def test_a_locked_store_is_a_warning(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sqlite_store, "SECONDS_TO_LOCK", 0.1)
    other = sqlite3.connect(store, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    found = last(store)
    other.close()
    assert (found.check, found.verdict) == ("MLflow writing", "warning")


@pytest.fixture
def answering() -> Iterator[object]:
    """A web server that answers everything alike; call it with the answer for its address."""
    servers: list[ThreadingHTTPServer] = []

    def start(code: int, body: bytes) -> str:
        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self.send_response(code)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            do_POST = do_GET

            def log_message(self, *args: object) -> None: ...

        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        servers.append(server)
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        return f"http://127.0.0.1:{server.server_port}"

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """`check` sets what MLflow reads; here it is taken back afterwards."""
    monkeypatch.setattr(tracking, "REQUEST_SECONDS", 1)
    for name in ("HTTP_REQUEST_TIMEOUT", "HTTP_REQUEST_MAX_RETRIES", "DISABLE_TELEMETRY"):
        monkeypatch.setenv(f"MLFLOW_{name}", "")


def look(uri: str) -> list[Finding]:
    return list(tracking.check(Asked("runs", uri)))


@pytest.mark.parametrize(
    ("code", "body", "words"),
    [
        (500, b"{}", "the server fails"),
        (401, b"You are not authenticated.", "MLFLOW_TRACKING_USERNAME"),
        (200, b"<html>", "is it an MLflow store?"),
    ],
)
def test_servers_that_fail(answering, code: int, body: bytes, words: str) -> None:
    (found,) = look(answering(code, body))
    assert found.verdict == "problem" and found.fix is not None and words in found.fix


def test_no_server_and_one_that_hangs() -> None:
    (absent,) = look(f"http://me:secret@127.0.0.1:{free_port()}")
    assert absent.fix is not None and "nothing listens there" in absent.fix and "secret" not in absent.found
    with socket.create_server(("127.0.0.1", 0)) as silent:
        (hangs,) = look(f"http://127.0.0.1:{silent.getsockname()[1]}")
    assert hangs.fix is not None and hangs.fix.startswith("it hangs")


def test_the_store_in_force(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = Asked(str(tmp_path))
    assert f"{tmp_path}/mlflow.db" in next(tracking.check(asked)).found
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/env.db")
    assert "env.db" in next(tracking.check(asked)).found
    assert "option.db" in next(tracking.check(Asked(str(tmp_path), f"sqlite:///{tmp_path}/option.db"))).found


@pytest.mark.slow
def test_a_real_server_is_left_as_it_was(tmp_path: Path) -> None:
    server = Server(tmp_path)
    try:
        server.start()
        found = look(server.uri)
        assert [(finding.check, finding.verdict) for finding in found] == [
            ("MLflow", "ok"), ("MLflow version", "ok"), ("MLflow writing", "ok"),
        ]  # fmt: skip
        assert [experiment.name for experiment in server.client().search_experiments()] == ["Default"]
        server.freeze()
        (hangs,) = look(server.uri)
        assert hangs.fix is not None and hangs.fix.startswith("it hangs")
        server.thaw()
    finally:
        server.kill()
    store = f"sqlite:///{tmp_path}/server.db"
    assert {finding.verdict for finding in look(store)} == {"ok"}
    shutil.copy(tmp_path / "server.db", tmp_path / "old.db")
    with sqlite3.connect(tmp_path / "old.db") as base:
        base.execute("UPDATE alembic_version SET version_num = 'x'")
    assert "mlflow db upgrade" in str(look(f"sqlite:///{tmp_path}/old.db")[-1].fix)
