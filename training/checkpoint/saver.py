"""Saving beside training and resuming, for all ranks together.

A save copies this rank's share of the state to host memory and returns; a thread writes it. The thread speaks over a
process group of its own, so that its collectives never meet training's. One save at a time: the next waits for it.
"""

import math
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import Tensor
from torch.distributed.checkpoint import HuggingFaceStorageReader, HuggingFaceStorageWriter

from configs.errors import CheckpointError, SteadytrainError
from configs.schema import Config
from parallel.topology import Topology
from training.build import Trainer
from training.checkpoint import store
from training.checkpoint.resume import require_compatible
from training.checkpoint.state import TrainingState
from training.checkpoint.store import FileRecord, Manifest

Report = Callable[[int, str, str], None]
"""Told (step, `checkpoint` or `checkpoint_failed`, one line) on the logging rank, from any thread."""


@dataclass(frozen=True)
class Resumed:
    """Where training goes on: after `step` updates; `journal` is what the record needs to go on."""

    step: int
    val_loss: float
    journal: dict[str, Any]
    message: str


class Checkpoints:
    """The checkpoints of one run. `save`, `wait` and `resume` are collective."""

    def __init__(self, config: Config, topology: Topology, trainer: Trainer, data_fingerprint: str) -> None:
        self._config, self._topology = config, topology
        self._folder = config.run_dir / store.FOLDER
        self._fingerprint = data_fingerprint
        self._state = TrainingState(trainer, topology)
        self._group = dist.new_group(backend="gloo") if config.checkpoint.interval else None
        self._thread: threading.Thread | None = None

    def due(self, updates: int) -> bool:
        """Whether to save after this many updates: every `checkpoint.interval`, and at the end."""
        interval = self._config.checkpoint.interval
        return interval > 0 and (updates % interval == 0 or updates == self._config.training.steps)

    def save(self, updates: int, val_loss: float, journal: dict[str, Any], report: Report) -> None:
        """Save the state after `updates` steps. A write that fails is reported and is no checkpoint; nothing raises."""
        self.wait()
        tensors = self._state.to_save()
        manifest = {
            "step": updates,
            "val_loss": val_loss if math.isfinite(val_loss) else None,
            "journal": journal,
        }
        self._thread = threading.Thread(target=self._write, args=(tensors, manifest, report), name="checkpoint")
        self._thread.start()
        if not self._config.checkpoint.asynchronous:
            self.wait()

    def wait(self) -> None:
        """Until the save under way is a checkpoint, or has failed."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def resume(self) -> Resumed | None:
        """Load the newest good checkpoint of the run folder; None if there is none at all.

        Raises:
            CheckpointError: there are checkpoints but no good one, or they are of another model, seed, batch or data.
        """
        choice = self._choose()
        if choice is None:
            return None
        path, manifest, passed_over = choice
        try:
            dcp.load(self._state.to_load(), storage_reader=HuggingFaceStorageReader(str(path)))
        except dcp.api.CheckpointException as error:
            raise CheckpointError(f"{path}: does not hold this model's state: {_first_line(error)}") from None
        self._state.loaded(manifest.step)
        message = "; ".join([f"continued from {path.name}", *passed_over])
        val_loss = math.nan if manifest.val_loss is None else manifest.val_loss
        return Resumed(manifest.step, val_loss, manifest.journal, message)

    def _choose(self) -> tuple[Path, Manifest, list[str]] | None:
        """The logging rank's choice, on every rank; its error too."""
        answer: list[Any] = [None]
        if self._topology.is_logging_rank:
            try:
                choice = store.newest_good(self._folder)
                if choice is not None:
                    require_compatible(choice[0], choice[1], self._config, self._fingerprint)
                answer = [choice]
            except SteadytrainError as error:
                answer = [error]
        if self._topology.world_size > 1:
            dist.broadcast_object_list(answer, src=0)
        if isinstance(answer[0], SteadytrainError):
            raise answer[0]
        return answer[0]

    def _write(self, tensors: dict[str, Tensor], manifest: dict[str, Any], report: Report) -> None:
        """In the thread: write, describe, commit; on every rank the same outcome."""
        step, started = manifest["step"], time.perf_counter()
        try:
            scratch = self._on_logging_rank(lambda: store.begin(self._folder, step))
            dcp.save(
                tensors,
                storage_writer=HuggingFaceStorageWriter(str(scratch), save_distributed=True),
                process_group=self._group,
            )
            files = self._describe(scratch)
            path = self._on_logging_rank(lambda: self._commit(scratch, manifest, files))
        except (OSError, dcp.api.CheckpointException, CheckpointError) as error:
            if self._topology.is_logging_rank:
                report(step, "checkpoint_failed", _first_line(error))
            return
        if self._topology.is_logging_rank:
            report(step, "checkpoint", f"{path.name} written in {time.perf_counter() - started:.1f} s{self._prune()}")

    def _describe(self, scratch: Path) -> dict[str, FileRecord]:
        """Sizes and checksums of all files; each rank fsyncs and reads the ones it wrote."""
        prefix = f"shard-{dist.get_rank(self._group) + 1:05d}-"
        mine: dict[str, FileRecord] | str
        try:
            mine = {path.name: store.describe(path) for path in scratch.glob(f"{prefix}*")}
        except OSError as error:
            mine = str(error)
        parts: list[Any] = [None] * self._topology.world_size
        dist.all_gather_object(parts, mine, group=self._group)
        failures = [part for part in parts if isinstance(part, str)]
        if failures:
            raise CheckpointError(f"{scratch}: {failures[0]}")
        return {name: record for part in parts for name, record in part.items()}

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


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
