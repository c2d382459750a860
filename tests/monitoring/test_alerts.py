"""Alerts: commands and addresses are told of the events asked for; what fails is told once and harms nothing."""

import json
import shlex
import socket
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from configs.schema import AlertsConfig
from monitoring import alerts
from monitoring.alerts import Alerts
from monitoring.recorder import Recorder, read_events


def record_events(run_dir: Path, config: AlertsConfig, *kinds: str) -> list[str]:
    """Record an event of each kind at steps 1, 2, ...; returns the kinds in events.jsonl once all are told."""
    with Recorder(run_dir, alerts=Alerts(config, run_dir)) as recorder:
        for step, kind in enumerate(kinds, 1):
            recorder.event(step, kind, f"reason {step}", value=float("inf"))
    return [event["kind"] for event in read_events(run_dir)]


def command_that_keeps(path: Path) -> str:
    """Appends its standard input and the two variables to a file."""
    program = f"""
import os, sys
with open({str(path)!r}, "a") as file:
    file.write(sys.stdin.read().strip() + "|" + os.environ["STEADYTRAIN_RUN"] + "|" + os.environ["STEADYTRAIN_EVENT"])
    file.write(chr(10))
"""
    return f"{shlex.quote(sys.executable)} -c {shlex.quote(program)}"


def test_a_command_gets_the_events_asked_for(tmp_path: Path):
    run_dir, kept = tmp_path / "run", tmp_path / "kept"
    config = AlertsConfig(command=command_that_keeps(kept), on=("alarm", "failed"))
    assert record_events(run_dir, config, "checkpoint", "alarm", "failed") == ["checkpoint", "alarm", "failed"]
    told = [line.split("|") for line in kept.read_text().splitlines()]
    assert [(run, kind) for _, run, kind in told] == [(str(run_dir), "alarm"), (str(run_dir), "failed")]
    first = json.loads(told[0][0])
    assert (first["step"], first["kind"], first["reason"], first["value"]) == (2, "alarm", "reason 2", "inf")


class Listener:
    """An address that keeps what is posted to it, and answers with `status`."""

    def __init__(self) -> None:
        self.status, self.posted = 200, list[dict]()
        listener = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                listener.posted.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
                self.send_response(listener.status)
                self.end_headers()

            def log_message(self, *args: object) -> None: ...

        self.server = HTTPServer(("127.0.0.1", 0), Handler)
        self.address = f"http://127.0.0.1:{self.server.server_port}/hook"
        threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True).start()


@pytest.fixture
def listener() -> Iterator[Listener]:
    found = Listener()
    yield found
    found.server.shutdown()
    found.server.server_close()


def test_an_address_gets_the_events_asked_for(tmp_path: Path, listener: Listener):
    record_events(tmp_path, AlertsConfig(webhook=listener.address, on=("rollback",)), "rollback", "alarm", "rollback")
    assert [event["step"] for event in listener.posted] == [1, 3]
    assert listener.posted[0]["run"] == str(tmp_path)


def test_failures_are_told_once(tmp_path: Path, listener: Listener, capfd):
    listener.status = 500
    config = AlertsConfig(command="echo no luck >&2; exit 4", webhook=listener.address, on=("alarm", "alert_failed"))
    assert record_events(tmp_path, config, "alarm", "alarm").count("alert_failed") == 1
    assert len(listener.posted) == 2  # the command's failure does not keep the address from being told
    (failed,) = (event for event in read_events(tmp_path) if event["kind"] == "alert_failed")
    assert (failed["reason"], failed["alert"]) == ("alerts.command: exit code 4: no luck", "alarm")
    assert capfd.readouterr().err == "no alert of alarm at step 1: alerts.command: exit code 4: no luck\n"


def test_an_address_that_refuses_or_is_not_there(tmp_path: Path, listener: Listener, capfd):
    listener.status = 403
    record_events(tmp_path / "a", AlertsConfig(webhook=listener.address), "alarm")
    assert read_events(tmp_path / "a")[-1]["reason"].startswith("alerts.webhook: HTTPError: HTTP Error 403")
    record_events(tmp_path / "b", AlertsConfig(webhook="http://127.0.0.1:9/"), "alarm")
    assert "Connection refused" in read_events(tmp_path / "b")[-1]["reason"]


def test_an_address_that_answers_no_http_is_told_and_asked_again(tmp_path: Path, capfd):
    calls = []

    def answer() -> None:
        for _ in range(2):
            connection, _ = server.accept()
            with connection:
                calls.append(connection.recv(65536))
                connection.sendall(b"220 mail.example.org ESMTP\r\n")

    with socket.create_server(("127.0.0.1", 0)) as server:
        threading.Thread(target=answer, daemon=True).start()
        config = AlertsConfig(webhook=f"http://127.0.0.1:{server.getsockname()[1]}/")
        assert record_events(tmp_path, config, "alarm", "alarm").count("alert_failed") == 1
    assert len(calls) == 2
    (failed,) = (event for event in read_events(tmp_path) if event["kind"] == "alert_failed")
    assert failed["reason"].startswith("alerts.webhook: BadStatusLine")


def test_a_command_that_hangs_is_killed_with_what_it_started(tmp_path: Path, monkeypatch, capfd):
    monkeypatch.setattr(alerts, "SECONDS", 0.5)
    mark = tmp_path / "alive"
    config = AlertsConfig(command=f"sleep 600 & echo $! > {shlex.quote(str(mark))}; wait")
    assert record_events(tmp_path / "run", config, "alarm") == ["alarm", "alert_failed"]
    assert "did not end within" in read_events(tmp_path / "run")[-1]["reason"]
    status = Path(f"/proc/{mark.read_text().strip()}/status")
    assert not status.exists() or "zombie" in status.read_text()


def test_a_flood_of_events_is_bounded(tmp_path: Path, monkeypatch, capfd):
    going_on = threading.Event()
    monkeypatch.setattr(alerts, "run_command", lambda *args: going_on.wait())
    told = Alerts(AlertsConfig(command="true"), tmp_path)
    for step in range(alerts.MAX_WAITING + 5):
        told.notify({"step": step, "kind": "alarm"})
    going_on.set()
    told.close()
    assert [event["kind"] for event in read_events(tmp_path)] == ["alert_failed"]


def test_nobody_to_tell_starts_no_thread(tmp_path: Path):
    before = threading.active_count()
    told = Alerts(AlertsConfig(), tmp_path)
    told.notify({"step": 1, "kind": "alarm"})
    assert threading.active_count() == before
    told.close()
