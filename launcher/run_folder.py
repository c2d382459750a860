"""The run folder before a run: refuse to mix two runs, write the resolved configuration."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from configs.atomic import write_atomically
from configs.errors import ConfigError
from configs.load import dump
from configs.schema import Config

CONFIG = "config.yaml"
LOGS = "logs"
BEFORE_A_RUN = {CONFIG, LOGS}
"""What a launch leaves that failed before its first step; the next one may use the folder."""


@contextmanager
def alone(config: Config) -> Iterator[None]:
    """Hold the run folder's place for the whole run, by a lock beside it that the system drops with the process.

    Raises ConfigError if another process runs there, or the lock cannot be written.
    """
    folder = config.run_dir
    lock = FileLock(folder.with_name(f".{folder.name}.lock"))
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        lock.acquire(timeout=0)
    except Timeout:
        raise ConfigError(
            f"{folder}: a run is under way in it; wait for it or end it, or choose another run.name"
        ) from None
    except OSError as error:
        raise ConfigError(f"run.dir = {config.run.dir}: cannot write {folder}: {error.strerror}") from None
    try:
        yield
    finally:
        lock.release()


def claim(config: Config, *, overwrite: bool) -> Path:
    """Make the run folder and write the resolved configuration into it; returns the configuration's path.

    Raises ConfigError if the folder holds a run and `overwrite` is not set, or cannot be written.
    """
    folder = config.run_dir
    try:
        entries = {entry.name for entry in folder.iterdir()} if folder.exists() else set()
        if entries - BEFORE_A_RUN:
            _clear(folder, overwrite=overwrite)
        (folder / LOGS).mkdir(parents=True, exist_ok=True)
        path = folder / CONFIG
        write_atomically(path, dump(config))
    except OSError as error:
        raise ConfigError(f"run.dir = {config.run.dir}: cannot write {folder}: {error.strerror}") from None
    return path


def _clear(folder: Path, *, overwrite: bool) -> None:
    """Delete a run; never a folder that is not one, or that other runs are in."""
    inner = next((path.parent for path in sorted(folder.rglob(CONFIG)) if path.parent != folder), None)
    if inner is not None:
        raise ConfigError(f"{folder}: holds another run, {inner}; choose another run.name")
    if not (folder / CONFIG).is_file():
        raise ConfigError(f"{folder}: holds files that are no run (there is no {CONFIG}); choose another run.name")
    if not overwrite:
        raise ConfigError(f"{folder}: holds a run already; choose another run.name, or delete it with --overwrite")
    shutil.rmtree(folder)
