"""The run folder before a run: refuse to mix two runs, continue one from its checkpoints, write the configuration."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from configs.atomic import write_atomically
from configs.errors import CheckpointError, ConfigError, LaunchError
from configs.load import dump
from configs.schema import Config

CONFIG = "config.yaml"
LOGS = "logs"
JOB = "job"
BEFORE_A_RUN = {CONFIG, LOGS, JOB}
"""What a launch leaves that failed before its first step; the next one may use the folder."""


def lock_path(folder: Path) -> Path:
    """The lock of a run folder, beside it."""
    return folder.with_name(f".{folder.name}.lock")


@contextmanager
def alone(config: Config, *, wait_s: float = 0) -> Iterator[None]:
    """Hold the run folder's place for the whole run, by a lock beside it that the system drops with the process.

    `wait_s`: how long another process that is about to end may still hold it.
    Raises ConfigError if another process runs there, or the lock cannot be written; LaunchError where it was waited
    for: it may yet end, and another attempt succeed.
    """
    folder = config.run_dir
    lock = FileLock(lock_path(folder))
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        lock.acquire(timeout=wait_s)
    except Timeout:
        raise (LaunchError if wait_s else ConfigError)(
            f"{folder}: a run is under way in it; wait for it or end it, or choose another run.name"
        ) from None
    except OSError as error:
        raise ConfigError(f"run.dir = {config.run.dir}: cannot write {folder}: {error.strerror}") from None
    try:
        yield
    finally:
        lock.release()


def claim(config: Config, *, overwrite: bool, fresh: bool = False, again: bool = False) -> Path:
    """Make the run folder and write the resolved configuration into it; returns the configuration's path.

    A run that has checkpoints is continued, and one that was killed before its first begins again: the folder stays as
    it is. `fresh` refuses that, `overwrite` deletes the run instead. `again` says that this is another attempt of the
    run in the folder, which begins anew where it left no checkpoint.

    Raises:
        ConfigError: the folder holds a run that cannot be continued or must not be deleted, or cannot be written.
        CheckpointError, DataError: the run's checkpoints are of another model, seed, batch or data.
    """
    if overwrite and fresh:
        raise ConfigError("command line: --fresh, --overwrite: only one of them; --overwrite deletes the earlier run")
    folder = config.run_dir
    try:
        _finish_deleting(folder)
        checkpoints = _checkpoints(folder)
        if config.init_from is not None and (overwrite or not checkpoints):
            _require_source(config)
        if checkpoints and fresh:
            raise ConfigError(
                f"{folder}: holds checkpoints up to {checkpoints[0].name}; without --fresh the run is continued, "
                "with --overwrite deleted; or choose another run.name"
            )
        if checkpoints and not overwrite:
            _require_same_training(checkpoints, config)
        elif again or (not overwrite and not fresh and _was_cut_short(folder, config)):
            pass  # nothing was saved yet: the same command begins again
        elif folder.exists() and {entry.name for entry in folder.iterdir()} - BEFORE_A_RUN:
            _clear(folder, overwrite=overwrite)
        (folder / LOGS).mkdir(parents=True, exist_ok=True)
        path = folder / CONFIG
        write_atomically(path, dump(config))
    except OSError as error:
        raise ConfigError(f"run.dir = {config.run.dir}: cannot write {folder}: {error.strerror}") from None
    return path


def _checkpoints(folder: Path) -> list[Path]:
    """The run's checkpoints, newest first."""
    from training.checkpoint import store

    return store.steps(folder / store.FOLDER)


def _was_cut_short(folder: Path, config: Config) -> bool:
    """Whether the folder holds this very run, ended from outside before its first checkpoint."""
    from monitoring.recorder import SUMMARY

    path = folder / CONFIG
    unfinished = path.is_file() and not (folder / SUMMARY).exists()
    return unfinished and config.checkpoint.interval > 0 and path.read_text(encoding="utf-8") == dump(config)


def _require_same_training(checkpoints: list[Path], config: Config) -> None:
    """Before config.yaml is replaced and processes start: does `config` continue what the checkpoints hold?

    One that cannot be read is passed over here; which one is whole, training finds out and says.
    """
    from data.samples import Samples
    from training.checkpoint import store
    from training.checkpoint.resume import require_compatible

    training = config.training
    fingerprint = Samples(config.data.sources, "train", training.sequence_length, training.seed).fingerprint
    for checkpoint in checkpoints:
        with suppress(CheckpointError):
            manifest = store.read_manifest(checkpoint)
            break
    else:
        return
    require_compatible(checkpoint, manifest, config, fingerprint)


def _require_source(config: Config) -> None:
    """Before a run is deleted and processes start: is there what the new one begins from?"""
    from training.checkpoint.source import check_before_launch

    check_before_launch(config)


def _clear(folder: Path, *, overwrite: bool) -> None:
    """Delete a run; never a folder that is not one, or that other runs are in."""
    inner = next((path.parent for path in sorted(folder.rglob(CONFIG)) if path.parent != folder), None)
    if inner is not None:
        raise ConfigError(f"{folder}: holds another run, {inner}; choose another run.name")
    if not (folder / CONFIG).is_file():
        raise ConfigError(f"{folder}: holds files that are no run (there is no {CONFIG}); choose another run.name")
    if not overwrite:
        raise ConfigError(
            f"{folder}: holds a run already, without a checkpoint to continue it from (checkpoint.interval sets when "
            "they are saved); choose another run.name, or delete it with --overwrite"
        )
    if folder.is_symlink():
        raise ConfigError(f"{folder}: is a link to {folder.resolve()}, which is not deleted; choose another run.name")
    # The name goes first: a kill on the way leaves no half of a run that the next command would go on with.
    folder.rename(_deleted_path(folder))
    _finish_deleting(folder)


def _finish_deleting(folder: Path) -> None:
    """What a kill left of a deleted run."""
    if _deleted_path(folder).exists():
        shutil.rmtree(_deleted_path(folder))


def _deleted_path(folder: Path) -> Path:
    return folder.with_name(f".{folder.name}.deleted")
