"""A small process beside the logging rank that outlives it: it delivers what is left and says how the run ended.

`python -m monitoring.watchdog` reads its standard input until the rank closes it, by ending in whatever way. If the
spool is gone then, all is delivered and the process ends. If not, it takes a few minutes at most to deliver the spool;
where that has no last word, the rank was killed: the run has failed. A newer attempt of the run takes over at once.

Nothing heavy is imported before the pipe is closed; it holds neither the terminal nor any file of its parent's.
"""

import contextlib
import signal
import subprocess
import sys
import time
from pathlib import Path

FIRST_DELAY, LAST_DELAY = 1.0, 30.0


class Watchdog:
    """The process, seen from the rank that it watches."""

    def __init__(self, run_dir: Path, attempt: int, seconds: float) -> None:
        """Start it, to try for `seconds` at most once the rank has ended. Raises OSError."""
        self._process = subprocess.Popen(
            [sys.executable, "-m", "monitoring.watchdog", str(run_dir.absolute()), str(attempt), str(seconds)],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,  # a Ctrl-C, and who kills the run's process group, mean the run
        )

    @property
    def pid(self) -> int:
        return self._process.pid

    def release(self, wait_s: float) -> None:
        """Close the pipe and wait until the process has ended; beyond `wait_s`, it is left to its work."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(wait_s)


def main(run_dir: Path, attempt: int, seconds: float) -> None:
    """Wait for the end of the parent, then deliver what it left."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)  # they mean the run; whoever kills that one has still to be told of
    sys.stdin.buffer.read()
    if not list((run_dir / "tracking").glob(f"spool-{attempt:05d}.jsonl")):
        return
    _deliver(run_dir, attempt, time.monotonic() + seconds)


def _deliver(run_dir: Path, attempt: int, deadline: float) -> None:
    from monitoring.alerts import Alerts
    from monitoring.delivery import Delivery, Superseded, conclude
    from monitoring.mlflow_store import failure
    from monitoring.recorder import append_event
    from monitoring.spool import read_config

    config, end = read_config(run_dir), conclude(run_dir, attempt)
    if end.is_new:
        alerts = Alerts(config.alerts, run_dir)
        alerts.notify(append_event(run_dir, end.step, "failed", end.line["reason"]))
        alerts.close()
    delivery, delay = Delivery(config, run_dir, attempt, live=False), FIRST_DELAY
    while True:
        try:
            delivery.deliver(end.line)
            return
        except Superseded:
            return
        except Exception as error:  # noqa: BLE001 (whatever store or network do, it is tried again)
            if time.monotonic() + delay > deadline:
                reason = f"{failure(delivery.uri, error)}; given up: steadytrain sync {run_dir} delivers what is left"
                append_event(run_dir, end.step, "tracking_error", reason)
                return
        time.sleep(delay)
        delay = min(2 * delay, LAST_DELAY)


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3]))
