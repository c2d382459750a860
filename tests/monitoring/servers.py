"""A real `mlflow server` that can be frozen, killed and started again, and a proxy that can get its answers wrong."""

import http.client
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Literal

import psutil
from mlflow import MlflowClient

SECONDS_TO_START = 120.0


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def wait_until(condition: Callable[[], object], what: str, seconds: float = SECONDS_TO_START) -> None:
    """Look again and again; the wait is for another process."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"{what}: not within {seconds:.0f} s"
        time.sleep(0.05)


class Server:
    """`mlflow server` on this machine, with an SQLite store and files in `folder`; the same port at each start."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.port = folder, free_port()
        self.uri = f"http://127.0.0.1:{self.port}"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Returns once it answers."""
        store = ["--backend-store-uri", f"sqlite:///{self.folder}/server.db"]
        files = ["--artifacts-destination", str(self.folder / "files")]
        where = ["--host", "127.0.0.1", "--port", str(self.port), "--workers", "1"]
        with (self.folder / "server.log").open("ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "mlflow", "server", *store, *files, *where],
                env=os.environ | {"MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"},
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        wait_until(self._answers, "mlflow server")

    def _answers(self) -> bool:
        assert self._process is not None and self._process.poll() is None, (self.folder / "server.log").read_text()
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=5)
        try:
            connection.request("GET", "/health")
            return connection.getresponse().status == 200
        except OSError:
            return False
        finally:
            connection.close()

    def freeze(self) -> None:
        for process in self._family():
            process.suspend()

    def thaw(self) -> None:
        for process in self._family():
            process.resume()

    def kill(self) -> None:
        """As a machine that loses power."""
        if self._process is not None:
            family = self._family()
            for process in family:
                process.send_signal(signal.SIGKILL)
            psutil.wait_procs(family, timeout=30)
            self._process.wait()
            self._process = None

    def _family(self) -> list[psutil.Process]:
        assert self._process is not None
        server = psutil.Process(self._process.pid)
        return [server, *server.children(recursive=True)]

    def client(self) -> MlflowClient:
        return MlflowClient(tracking_uri=self.uri)


Answer = Literal["pass", "refuse", "swallow"]


class Proxy:
    """In front of a server: passes requests on, answers 500 itself, or passes them on and loses the answer."""

    def __init__(self, server: Server) -> None:
        self.answer: Answer = "pass"
        self.only = ""
        """Only requests whose path ends so are treated; the others pass."""
        self.treated: Counter[Answer] = Counter()
        self.passed: Counter[str] = Counter()
        """Requests by the last part of their path."""
        proxy = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
                answer: Answer = proxy.answer if self.path.split("?")[0].endswith(proxy.only) else "pass"
                if answer == "refuse":
                    self._reply(500, b"{}")
                else:
                    upstream = http.client.HTTPConnection("127.0.0.1", server.port, timeout=60)
                    upstream.request(self.command, self.path, body, dict(self.headers))
                    reply = upstream.getresponse()
                    content = reply.read()
                    upstream.close()
                    proxy.passed[self.path.split("?")[0].rsplit("/", 1)[-1]] += 1
                    if answer == "swallow":
                        self.close_connection = True
                        self.connection.shutdown(socket.SHUT_RDWR)
                    else:
                        self._reply(reply.status, content)
                proxy.treated[answer] += 1

            do_GET = do_POST = do_PUT = do_PATCH = do

            def _reply(self, status: int, content: bytes) -> None:
                self.send_response(status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

            def log_message(self, *args: object) -> None: ...

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.uri = f"http://127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
