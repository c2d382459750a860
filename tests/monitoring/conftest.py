"""What every test of the tracker can rely on: no watchdog outlives it."""

from collections.abc import Iterator

import psutil
import pytest

from monitoring import tracker
from monitoring.watchdog import Watchdog
from tests.monitoring.servers import Proxy, Server


@pytest.fixture(autouse=True)
def watchdogs(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """The ids of the watchdogs that this test's own process started; they are ended with the test."""
    started: list[psutil.Process] = []
    pids: list[int] = []

    class Watched(Watchdog):
        def __init__(self, *args) -> None:
            super().__init__(*args)
            started.append(psutil.Process(self.pid))
            pids.append(self.pid)

    monkeypatch.setattr(tracker, "Watchdog", Watched)
    yield pids
    for process in started:
        if process.is_running():  # psutil compares start times: never a stranger that was given the id
            process.kill()


@pytest.fixture(scope="session")
def mlflow_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A real server for all tests of a session; a test that stops it starts it again."""
    server = Server(tmp_path_factory.mktemp("mlflow-server"))
    try:
        server.start()
        yield server
    finally:
        server.kill()


@pytest.fixture
def proxy(mlflow_server: Server) -> Iterator[Proxy]:
    """A proxy in front of it that passes everything until it is told otherwise."""
    found = Proxy(mlflow_server)
    yield found
    found.close()
