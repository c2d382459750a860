"""Alerts: a command of the user's, or an address, is told of the events that `alerts.on` names.

The event goes as one JSON object, as events.jsonl has it: on the command's standard input, with STEADYTRAIN_RUN and
STEADYTRAIN_EVENT in its environment; to the address by POST. A thread does it: training neither waits nor fails. What
fails is told once, as the event `alert_failed`.
"""

import contextlib
import http.client
import os
import queue
import signal
import subprocess
import sys
import tempfile
import threading
import urllib.request
from pathlib import Path

from configs.schema import AlertsConfig
from monitoring.recorder import Record, append_event, describe, json_line

SECONDS = 10.0
"""How long a command or an address may take."""
MAX_WAITING = 100


class AlertFailed(Exception):
    """A command or an address could not be told, in one line."""


class Alerts:
    """Tells of events from a thread of its own, which starts with the first of them."""

    def __init__(self, config: AlertsConfig, run_dir: Path) -> None:
        self._config, self._run_dir = config, run_dir
        self._kinds = set(config.on) if config.command or config.webhook else set()
        self._waiting: queue.Queue[Record | None] = queue.Queue(MAX_WAITING)
        self._thread: threading.Thread | None = None
        self._lock = threading.Lock()
        self._failed = False

    def notify(self, event: Record) -> None:
        """Tell of an event if its kind is asked for. Never blocks, never raises."""
        if event["kind"] not in self._kinds:
            return
        with self._lock:
            if self._thread is None:
                self._thread = threading.Thread(target=self._work, name="alerts", daemon=True)
                self._thread.start()
        try:
            self._waiting.put_nowait(event)
        except queue.Full:
            self._report(event, f"more than {MAX_WAITING} events wait; later ones are not told")

    def close(self) -> None:
        """Wait until the events so far are told, as long as two of them may take at most."""
        if self._thread is None:
            return
        with contextlib.suppress(queue.Full):
            self._waiting.put(None, timeout=SECONDS)
        self._thread.join(2 * SECONDS)  # a command and an address

    def _work(self) -> None:
        while (event := self._waiting.get()) is not None:
            self._tell(event)

    def _tell(self, event: Record) -> None:
        try:
            if self._config.command:
                run_command(self._config.command, event, self._run_dir)
        except (AlertFailed, OSError) as error:
            self._report(event, f"alerts.command: {error}")
        try:
            if self._config.webhook:
                post(self._config.webhook, event, self._run_dir)
        except (OSError, ValueError, http.client.HTTPException) as error:  # URLError is an OSError
            self._report(event, f"alerts.webhook: {describe(error)}")

    def _report(self, event: Record, reason: str) -> None:
        with self._lock:
            failed, self._failed = self._failed, True
        if failed:
            return
        with contextlib.suppress(OSError):  # stderr may be a closed pipe, the disk may be full: nothing left to tell
            append_event(self._run_dir, event["step"], "alert_failed", reason, alert=event["kind"])
            sys.stderr.write(f"no alert of {event['kind']} at step {event['step']}: {reason}\n")


def run_command(command: str, event: Record, run_dir: Path) -> None:
    """Run a shell command for an event; what it started is killed after ten seconds.

    Raises: AlertFailed with its last words; OSError if it cannot be started.
    """
    told = {"STEADYTRAIN_RUN": str(run_dir.absolute()), "STEADYTRAIN_EVENT": event["kind"]}
    # Files and no pipes: a grandchild that holds one open cannot keep us waiting.
    with tempfile.TemporaryFile() as stdin, tempfile.TemporaryFile() as stderr:
        stdin.write(json_line(event).encode())
        stdin.seek(0)
        process = subprocess.Popen(
            command,
            shell=True,
            stdin=stdin,
            stdout=subprocess.DEVNULL,
            stderr=stderr,
            env=os.environ | told,
            start_new_session=True,
        )
        try:
            code = process.wait(SECONDS)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            raise AlertFailed(f"did not end within {SECONDS:.0f} s") from None
        if code != 0:
            stderr.seek(0)
            words = stderr.read(100_000).decode(errors="replace").strip().splitlines()
            raise AlertFailed(f"exit code {code}{': ' + words[-1][:300] if words else ''}")


def post(address: str, event: Record, run_dir: Path) -> None:
    """POST an event, with the run it is of.

    Raises: OSError (of it, HTTPError for an answer that refuses); HTTPException for an answer that is no HTTP.
    """
    body = json_line({"run": str(run_dir.absolute()), **event}).encode()
    request = urllib.request.Request(address, body, {"Content-Type": "application/json"}, method="POST")
    with urllib.request.urlopen(request, timeout=SECONDS):
        pass
