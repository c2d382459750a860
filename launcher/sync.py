"""`steadytrain sync`: send what a run's end left undelivered, and say how the run ended where nobody did."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from configs.errors import ConfigError
from launcher.run_folder import lock_path
from monitoring.delivery import Delivery, Superseded, conclude
from monitoring.mlflow_store import failure
from monitoring.recorder import append_event
from monitoring.spool import CONFIG, FOLDER, attempts, count_waiting, read_config

STUDY_LOCK = ".lock"


def sync(run_dir: Path) -> str:
    """Deliver the spools of a run, or of a study's own MLflow run; one line that says what became of it.

    Raises: ConfigError if the folder is no tracked run or the run is under way, and if its store does not take it all.
    """
    if not run_dir.is_dir():
        raise ConfigError(f"{run_dir}: no such folder; give the folder of a run, such as runs/tiny")
    if not (run_dir / FOLDER / CONFIG).is_file():
        raise ConfigError(f"{run_dir}: no attempt of a run was tracked in it (tracking.kind = none, or it is no run)")
    with _alone(run_dir):
        waiting = attempts(run_dir)
        if not waiting:
            return f"{run_dir}: all points were delivered already"
        end = conclude(run_dir, waiting[-1])
        if end.is_new:
            append_event(run_dir, end.step, "failed", end.line["reason"])
        delivery = Delivery(read_config(run_dir), run_dir, waiting[-1], live=False)
        try:
            delivery.deliver(end.line)
        except Superseded:
            return f"{run_dir}: all points were delivered meanwhile, by the run's watchdog"
        except Exception as error:  # noqa: BLE001 (whatever store or network do is one line to the user)
            left = count_waiting(run_dir)
            raise ConfigError(f"{failure(delivery.uri, error)}; {left:,} points of {run_dir} still wait") from None
    return f"{run_dir}: {delivery.delivered:,} points delivered; the run {_ended(end.line)}"


def _ended(end: dict[str, str]) -> str:
    reason = f": {end['reason']}" if end["reason"] else ""
    return f"has {end['end']}{reason}" if end["end"] != "stopped" else f"was stopped{reason}"


@contextmanager
def _alone(run_dir: Path) -> Iterator[None]:
    """Nobody trains in the folder meanwhile. Raises ConfigError if somebody does."""
    study_lock = run_dir / STUDY_LOCK
    lock = FileLock(study_lock if study_lock.exists() else lock_path(run_dir.resolve()))
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise ConfigError(f"{run_dir}: is under way, and delivers its points itself") from None
    except OSError as error:
        raise ConfigError(f"{run_dir}: cannot be locked: {error.strerror}") from None
    try:
        yield
    finally:
        lock.release()
