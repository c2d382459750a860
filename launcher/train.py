"""`steadytrain train`: from a configuration to the processes that train it."""

import os
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from pkgutil import resolve_name
from typing import Any

from configs.errors import ConfigError, LaunchError, SteadytrainError
from configs.load import load_with_origins
from configs.schema import Config
from launcher.environment import Rank, started_rank
from launcher.failure import Failure, traceback_path
from launcher.outcome import Outcome
from launcher.run_folder import LOGS, alone, claim

TRAIN = "training.run:train"
"""What every rank calls with the resolved configuration."""


def train(
    path: Path,
    overrides: Sequence[str],
    *,
    nproc: int | None = None,
    overwrite: bool = False,
    fresh: bool = False,
    entry: str = TRAIN,
) -> Outcome | None:
    """Train one configuration here: in this process, or in as many as it needs.

    A run of the same name that has checkpoints is continued, unless `fresh` refuses it or `overwrite` deletes it.

    Returns how it ended; None in a rank other than 0 that torchrun or srun started.
    Raises ConfigError for the user's mistakes, LaunchError when a process failed.
    """
    rank = started_rank()
    if rank is not None:
        return _train_as_rank(path, overrides, rank, nproc=nproc, overwrite=overwrite, fresh=fresh, entry=entry)
    loaded = load_with_origins(path, overrides)
    parallel = loaded.config.parallel
    world_size = nproc or parallel.tp * parallel.pp * (parallel.dp or 1)
    config = loaded.resolve(world_size)
    config = _choose_device(config, world_size)
    with alone(config):
        config_path = claim(config, overwrite=overwrite, fresh=fresh)
        if world_size > 1:
            from launcher.local import launch

            with _truthful_tracking(config):
                return launch(config_path, world_size, config_path.parent / LOGS, entry)
        with _only_rank(), sigterm_exits():
            return Outcome.of(_train_alone(config, config_path.parent / LOGS, entry), config.run_dir)


def _train_alone(config: Config, logs: Path, entry: str) -> Any:
    """The only rank of a run: a crash is told as that of a run of many, one line and a file with the traceback."""
    try:
        return resolve_name(entry)(config)
    except SteadytrainError:
        raise
    except Exception as error:  # noqa: BLE001 (the boundary of the process: recorded, and told in one line)
        failure, where = Failure.of(error, rank=0, is_user_error=False), f"; traceback in {traceback_path(logs, 0)}"
        try:
            failure.write(logs, error)
        except OSError:
            where = " (its traceback could not be written)"
        raise LaunchError(f"training failed: {failure.message}{where}") from None


def _train_as_rank(
    path: Path, overrides: Sequence[str], rank: Rank, *, nproc: int | None, overwrite: bool, fresh: bool, entry: str
) -> Outcome | None:
    """This process is one rank of a run that somebody else launched; rank 0 owns the run folder."""
    try:
        if nproc is not None:
            raise ConfigError(f"command line: --nproc = {nproc}: must not be set under {rank.launcher}")
        config = load_with_origins(path, overrides).resolve(rank.world_size)
        os.environ.update(RANK=str(rank.rank), LOCAL_RANK=str(rank.local_rank), WORLD_SIZE=str(rank.world_size))
        os.environ.setdefault("OMP_NUM_THREADS", "1")
        with sigterm_exits(), alone(config) if rank.rank == 0 else nullcontext():  # torchrun and Slurm end ranks so
            if rank.rank == 0:
                claim(config, overwrite=overwrite, fresh=fresh)
            summary = resolve_name(entry)(config)
    except SteadytrainError as error:
        if rank.rank == 0:
            raise
        raise type(error)(f"rank {rank.rank}: {error}") from None
    return Outcome.of(summary, config.run_dir) if rank.rank == 0 else None


@contextmanager
def _only_rank() -> Iterator[None]:
    """The variables torch.distributed reads, for a run of one process; they leave no trace."""
    names = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1"}
    names["MASTER_PORT"] = "0"  # any free one, chosen when the store binds it: a sweep starts many runs at once
    before = {name: os.environ.get(name) for name in names}
    os.environ.update(names)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


@contextmanager
def sigterm_exits() -> Iterator[None]:
    """Leave by SystemExit on SIGTERM, so that what is under way is recorded as failed, or removed, on the way out."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def leave(number: int, _: object) -> None:
        raise SystemExit(128 + number)

    before = signal.signal(signal.SIGTERM, leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@contextmanager
def _truthful_tracking(config: Config) -> Iterator[None]:
    """Ranks that were killed could not end their MLflow run: it would stay RUNNING for ever."""
    try:
        yield
    except BaseException:
        from monitoring.mlflow_store import mark_failed

        mark_failed(config, config.run_dir)
        raise


def _choose_device(config: Config, world_size: int) -> Config:
    """`auto` stays with the CPU, and says so, where the machine has CUDA but not a device for each process.

    Raises ConfigError if CUDA is asked for and this machine has too few devices.
    """
    device = config.training.device
    if device == "cpu" or (device == "auto" and world_size == 1):
        return config
    import torch

    count = torch.cuda.device_count()
    if count >= world_size or (device == "auto" and count == 0):
        return config
    if device == "auto":
        devices = f"{count} CUDA device{'' if count == 1 else 's'}"
        print(f"training.device = auto: {devices} for {world_size} processes: training on the CPU", file=sys.stderr)  # noqa: T201
        return config.model_copy(update={"training": config.training.model_copy(update={"device": "cpu"})})
    if count == 0:
        raise ConfigError("training.device = cuda: this machine has no CUDA device that torch can use; use auto or cpu")
    raise ConfigError(
        f"training.device = cuda: {world_size} processes need a device each; this machine has {count}; "
        "lower parallel.tp, pp or dp, or use cpu"
    )
