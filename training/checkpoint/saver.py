"""Saving beside training and resuming, for all ranks together.

A save copies this rank's share of the state to host memory and returns; a thread writes it. With
`checkpoint.asynchronous: false` training waits for the write, and nothing is copied. The thread speaks over a process
group of its own, so that its collectives never meet training's. One save at a time: the next waits for it.
"""

import math
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import Tensor
from torch.distributed.checkpoint import HuggingFaceStorageReader

from configs.errors import CheckpointError
from configs.schema import Config
from parallel.topology import Topology
from training.build import Trainer
from training.checkpoint import store
from training.checkpoint.resume import require_compatible
from training.checkpoint.state import TrainingState
from training.checkpoint.store import FileRecord, Manifest
from training.checkpoint.writer import ShardWriter
from training.reductions import from_logging_rank

Report = Callable[[int, str, str], None]
"""Told (step, `checkpoint` or `checkpoint_failed`, one line) on the logging rank, from any thread."""


@dataclass(frozen=True)
class Resumed:
    """Where training goes on: after `step` updates; record and watch go on from `journal` and `stability`."""

    step: int
    val_loss: float
    journal: dict[str, Any]
    stability: dict[str, Any]
    message: str


class Checkpoints:
    """The checkpoints of one run. `save`, `wait` and `resume` are collective."""

    def __init__(self, config: Config, topology: Topology, trainer: Trainer, data_fingerprint: str) -> None:
        self._config, self._topology = config, topology
        self._folder = config.run_dir / store.FOLDER
        self._fingerprint = data_fingerprint
        self._state = TrainingState(trainer, topology)
        self._group = dist.new_group(backend="gloo")
        self._thread: threading.Thread | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        """Left by an exception, a process that trains alone ends its save: the process group is about to go.

        One of many must not wait: the ranks that it would wait for may be gone.
        """
        if kind is not None and self._topology.world_size == 1:
            self.wait()

    def due(self, updates: int) -> bool:
        """Whether to save after this many updates: every `checkpoint.interval`, and at the end."""
        interval = self._config.checkpoint.interval
        return interval > 0 and (updates % interval == 0 or updates == self._config.training.steps)

    def save(
        self,
        updates: int,
        val_loss: float,
        *,
        journal: dict[str, Any],
        stability: dict[str, Any],
        skipped: int,
        report: Report,
        seconds: float | None = None,
    ) -> None:
        """Save the state after `updates` steps, of which `skipped` made no update.

        A write that fails is reported and is no checkpoint; nothing raises. Returns when training may go on: the state
        is copied or, if not asynchronous, committed. With `seconds`, after that time in any case, as `wait` will then
        tell: the process must end.
        """
        if not self.wait(seconds):
            return  # the save before this one is still being written
        asynchronous = self._config.checkpoint.asynchronous
        tensors = self._state.copy_to_save() if asynchronous else self._state.to_save()
        manifest = {
            "step": updates,
            "val_loss": val_loss if math.isfinite(val_loss) else None,
            "journal": journal,
            "stability": stability,
            "skipped": skipped,
        }
        settled = threading.Event()
        self._thread = threading.Thread(
            target=self._write, args=(tensors, manifest, report, settled), name="checkpoint"
        )
        self._thread.start()
        if not asynchronous:
            settled.wait(seconds)

    def wait(self, seconds: float | None = None) -> bool:
        """Until the save under way is a checkpoint or has failed, and older ones are deleted.

        False if it has not come to an end within `seconds`: what it has written is then no checkpoint, and never will
        be if the process ends, which it must, since the save still uses the process group.
        """
        if self._thread is not None:
            self._thread.join(seconds)
            if self._thread.is_alive():
                return False
            self._thread = None
        return True

    def resume(self) -> Resumed | None:
        """Load the newest good checkpoint of the run folder; None if there is none at all.

        Raises:
            CheckpointError: there are checkpoints but no good one, or they are of another model, seed, batch or data.
        """
        choice = from_logging_rank(self._topology, self._choose)
        return None if choice is None else self._load(*choice)

    def reach_back(self, updates: int) -> int | None:
        """The step of the newest good checkpoint of at most so many updates; None if there is none. Collective."""
        self.wait()
        return from_logging_rank(self._topology, lambda: self._newest_good_step(updates))

    def roll_back(self, step: int) -> Resumed:
        """Delete the checkpoints above that of `step` and load it. Collective; waits for a save under way.

        Raises: CheckpointError if there is no good one at or before `step`.
        """
        self.wait()
        from_logging_rank(self._topology, lambda: store.rollback(self._folder, step))
        resumed = self.resume()
        assert resumed is not None, "store.rollback leaves a good checkpoint"
        return resumed

    def _load(self, path: Path, manifest: Manifest, passed_over: list[str]) -> Resumed:
        try:
            dcp.load(self._state.to_load(), storage_reader=HuggingFaceStorageReader(str(path)))
        except dcp.api.CheckpointException as error:
            raise CheckpointError(f"{path}: does not hold this model's state: {_first_failure(error)}") from None
        self._state.loaded(manifest.step - manifest.skipped)
        message = "; ".join([f"continued from {path.name}", *passed_over])
        val_loss = math.nan if manifest.val_loss is None else manifest.val_loss
        return Resumed(manifest.step, val_loss, manifest.journal, manifest.stability, message)

    def _newest_good_step(self, at_most: int) -> int | None:
        try:
            found = store.newest_good(self._folder, at_most=at_most)
        except CheckpointError:  # all of them are damaged: those after them may be good
            return None
        return None if found is None else found[1].step

    def _choose(self) -> tuple[Path, Manifest, list[str]] | None:
        """The newest good checkpoint, if this run can go on from it."""
        choice = store.newest_good(self._folder)
        if choice is not None:
            require_compatible(choice[0], choice[1], self._config, self._fingerprint)
        return choice

    def _write(
        self, tensors: dict[str, Tensor], manifest: dict[str, Any], report: Report, settled: threading.Event
    ) -> None:
        """In the thread: write and commit, on every rank with the same outcome; `tensors` are then done with.

        Older checkpoints are deleted after that, beside training in any case.
        """
        step, started = manifest["step"], time.perf_counter()
        try:
            scratch = self._on_logging_rank(lambda: store.begin(self._folder, step))
            writer = ShardWriter(scratch)
            dcp.save(tensors, storage_writer=writer, process_group=self._group)
            path = self._on_logging_rank(lambda: self._commit(scratch, manifest, writer.files))
        except (OSError, dcp.api.CheckpointException, CheckpointError) as error:
            if self._topology.is_logging_rank:  # no rank writes any more: all have told how it went
                with suppress(OSError):  # what is left goes with the next save
                    store.clear_leftovers(self._folder)
                report(step, "checkpoint_failed", _first_failure(error))
            return
        finally:
            seconds = time.perf_counter() - started
            settled.set()
        if self._topology.is_logging_rank:
            report(step, "checkpoint", f"{path.name} written in {seconds:.1f} s{self._prune()}")

    def _commit(self, scratch: Path, manifest: dict[str, Any], files: dict[str, FileRecord]) -> Path:
        parallel = self._config.parallel
        return store.commit(
            scratch,
            Manifest(
                format=1,
                created=time.time(),
                layout={
                    "tp": parallel.tp,
                    "pp": parallel.pp,
                    "dp": self._topology.dp_size,
                    "schedule": parallel.schedule,
                    "zero_stage": parallel.zero_stage,
                    "precision": self._config.training.precision,
                },
                config=self._config.model_dump(mode="json"),
                data_fingerprint=self._fingerprint,
                files=files,
                **manifest,
            ),
        )

    def _prune(self) -> str:
        """Delete what retention does not keep; what went wrong, if it did: the checkpoint just written stands."""
        rules = self._config.checkpoint
        try:
            store.prune(self._folder, keep=rules.keep, keep_every=rules.keep_every)
        except OSError as error:
            return f"; older ones could not be deleted: {error}"
        return ""

    def _on_logging_rank(self, action: Callable[[], Path]) -> Path:
        """Do it on the logging rank; its result, or its error, on every rank."""
        answer: list[Any] = [None]
        if self._topology.is_logging_rank:
            try:
                answer = [action()]
            except (OSError, CheckpointError) as error:
                answer = [CheckpointError(_first_line(error))]
        dist.broadcast_object_list(answer, src=0, group=self._group)
        if isinstance(answer[0], CheckpointError):
            raise answer[0]
        return answer[0]


def _first_failure(error: BaseException) -> str:
    """One line. What dcp raises starts with a list of ranks, each with a traceback: the first rank's error instead."""
    if isinstance(error, dcp.api.CheckpointException):
        rank, (cause, _) = min(error.failures.items(), key=lambda failure: failure[0])
        return f"rank {rank}: {_first_line(cause)}"
    return _first_line(error)


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
