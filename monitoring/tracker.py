"""The tracker of a run: its points reach MLflow, whatever the store does, and training never waits for it.

`log` writes a line to the spool (`monitoring.spool`), a thread delivers it (`monitoring.delivery`), and a small process
(`monitoring.watchdog`) delivers what is left when this one is killed, and says how the run ended. A store that is slow,
frozen, refuses or is gone is told once, on stderr and as the event `tracking_error`, and tried again with growing
pauses; `tracking_restored` says when it is back and how many points it was sent since.
"""

import contextlib
import sys
import threading
import time
from collections.abc import Mapping
from pathlib import Path

from configs.schema import Config
from monitoring.delivery import Delivery
from monitoring.mlflow_store import absolute_uri, failure, tracking_uri, without_password
from monitoring.recorder import EventSink, Status, append_event
from monitoring.spool import Line, Spool, trains_otherwise, write_config
from monitoring.system import SystemMetrics
from monitoring.watchdog import Watchdog

FLUSH_SECONDS = 5.0  # a flush is a few milliseconds of Python beside training, whatever it carries
MAX_PAUSE_SECONDS = 30.0
CLOSE_SECONDS = 60.0
STOP_SECONDS = 5.0  # a stopped run is about to be killed; what was not sent is sent when it goes on
RELEASE_SECONDS = 10.0
WATCHDOG_SECONDS = 600.0
"""How long a store may be out of reach, after the run, before the rest is left to `steadytrain sync`."""


class Tracker:
    """One attempt of one MLflow run. `log` only appends a line to a file; everything else happens beside training.

    A run folder that already names its MLflow run (`mlflow_run_id`) continues that run.
    """

    def __init__(self, config: Config, run_dir: Path, alerts: EventSink | None = None) -> None:
        """Begin the attempt. Raises OSError if the run folder cannot be written."""
        self._run_dir, self._alerts = run_dir, alerts
        self._spool = Spool(run_dir)
        uri = absolute_uri(tracking_uri(config))
        self._trains_otherwise = trains_otherwise(run_dir, config)
        write_config(run_dir, config, uri)
        self._delivery = Delivery(config, run_dir, self._spool.attempt, live=True)
        self._system: SystemMetrics | None = None
        self._with_system = config.tracking.system_metrics
        self._step = 0
        self._end: Line | None = None
        self._closing = threading.Event()
        self._started = threading.Event()  # the MLflow run exists, or could not be created
        self._delivered = False
        self._spool_failed = False
        self._failures = 0  # in a row
        self._next_try = 0.0
        self._before_failure = 0  # points delivered by then
        self.watchdog = self._watch()
        # A daemon: a process that dies without `close` must not hang on its tracker.
        self._thread = threading.Thread(target=self._work, name="mlflow", daemon=True)
        self._thread.start()

    @staticmethod
    def open(config: Config, run_dir: Path, alerts: EventSink | None = None) -> "Tracker | NoTracker":
        """The tracker that `config.tracking` asks for; returns at once. Raises OSError as `Tracker`."""
        run_dir.mkdir(parents=True, exist_ok=True)
        return NoTracker() if config.tracking.kind == "none" else Tracker(config, run_dir, alerts)

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Spool the numbers of one step. Never waits for a store, never raises."""
        self._step = step
        self._write(step=step, metrics=dict(metrics))

    def resume(self, step: int) -> None:
        """Go on after `step`, with metrics.jsonl cut to it; to be called before the first `log`.

        MLflow cannot take a point back, so that steps trained a second time to the bit are not sent a second time; what
        no spool has up to `step` is sent from metrics.jsonl. Steps trained under another configuration are new points.
        """
        self._step = step
        self._write(resume=step)
        if self._trains_otherwise:
            self._write(rollback=step)

    def rollback(self, step: int) -> None:
        """Training went back to `step`: what it logs from now on is new, also of steps logged before."""
        self._step = step
        self._write(rollback=step)

    def run_id(self, timeout: float = CLOSE_SECONDS) -> str | None:
        """Wait for the MLflow run; None when the store could not create it in time."""
        self._started.wait(timeout)
        return self._delivery.run_id

    def close(self, status: Status, reason: str = "") -> None:
        """Deliver what is left, the files and the status; waits at most a minute, of a stopped run some seconds.

        What could not be delivered is left to the watchdog, which goes on for some minutes, or to `steadytrain sync`.
        """
        self._end = {"end": status, "reason": reason, "time": int(time.time() * 1000)}
        self._write(end=status, reason=reason)
        self._closing.set()
        self._thread.join(STOP_SECONDS if status == "stopped" else CLOSE_SECONDS)
        if not self._delivered:
            where = without_password(f"MLflow at {self._delivery.uri}")
            self._say(f"{where}: the rest is sent in the background, or by: steadytrain sync {self._run_dir}")
        self._spool.close()
        if self.watchdog is not None:
            self.watchdog.release(RELEASE_SECONDS if self._delivered else 0.0)

    def _write(self, **line: object) -> None:
        try:
            self._spool.append(**line)
        except OSError as error:
            if not self._spool_failed:
                self._spool_failed = True
                self._report("tracking_error", f"the spool cannot be written: {error}; points are lost to MLflow")

    def _watch(self) -> Watchdog | None:
        try:
            return Watchdog(self._run_dir, self._spool.attempt, WATCHDOG_SECONDS)
        except OSError as error:
            self._report("tracking_error", f"no watchdog: {error}; a kill would leave the MLflow run RUNNING")
            return None

    def _work(self) -> None:
        closing = False
        while not closing and not self._delivered:
            closing = self._closing.wait(FLUSH_SECONDS if self._started.is_set() else 0.0)
            try:
                if self._with_system and not closing:
                    self._sample()
                if closing or time.monotonic() >= self._next_try:
                    self._delivered = self._delivery.deliver(self._end if closing else None)
                    self._reached()
            except Exception as error:  # noqa: BLE001 (whatever store or network do, training goes on)
                self._failed(error)
            self._started.set()

    def _sample(self) -> None:
        """The load of this machine, through the spool like everything else."""
        if self._delivery.run_id is None:
            return  # the first thing is to create the run
        self._system = self._system or SystemMetrics()
        if found := self._system.sample():
            self._write(step=self._step, system=found)

    def _failed(self, error: Exception) -> None:
        if self._failures == 0:
            self._before_failure = self._delivery.delivered
            reason = f"{failure(self._delivery.uri, error)}; every point stays in {self._run_dir / 'metrics.jsonl'}"
            self._report("tracking_error", reason)
        self._failures += 1
        self._next_try = time.monotonic() + min(FLUSH_SECONDS * 2**self._failures, MAX_PAUSE_SECONDS)

    def _reached(self) -> None:
        if self._failures == 0:
            return
        points = self._delivery.delivered - self._before_failure
        self._failures = 0
        reason = without_password(f"MLflow at {self._delivery.uri}: answers again; {points:,} points delivered since")
        self._report("tracking_restored", reason, points=points)

    def _report(self, kind: str, reason: str, **details: int) -> None:
        self._say(reason)
        with contextlib.suppress(OSError):  # the disk may be full: nothing left to tell
            event = append_event(self._run_dir, self._step, kind, reason, **details)
            if self._alerts is not None:
                self._alerts.notify(event)

    def _say(self, text: str) -> None:
        with contextlib.suppress(OSError, ValueError):  # stderr may be a closed pipe
            sys.stderr.write(text + "\n")


class NoTracker:
    """`tracking.kind: none`: the run folder is all there is."""

    def log(self, step: int, metrics: Mapping[str, float]) -> None: ...

    def resume(self, step: int) -> None: ...

    def rollback(self, step: int) -> None: ...

    def run_id(self, timeout: float = 0.0) -> str | None:
        return None

    def close(self, status: Status, reason: str = "") -> None: ...
