"""Rerunning the steps that led to an alarm, in a folder of its own: the run itself is read and never written.

Checkpoints are linked into that folder, and training goes on from the newest good one before the alarm's step as any
run does, with the batches it had then; nothing is tracked, alerted or rolled back.
"""

import json
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
from pydantic import ValidationError

from configs.checks import resolve
from configs.errors import DataError, LaunchError
from configs.load import dump
from configs.schema import AlertsConfig, CheckpointConfig, Config, ParallelConfig, TrackingConfig
from launcher.run_folder import CONFIG, LOGS
from monitoring.recorder import read_metrics
from stability.record import Record, Track
from stability.replay import SAME, SINGLE, Rerun
from stability.rewind import Rewinds
from training.checkpoint import store
from training.stop import Stop

PLAN, LOSSES = "plan.json", "sample-losses.json"
ENTRY = "launcher.replay:rerun_as_rank"


@dataclass(frozen=True)
class Plan:
    """What the ranks of a rerun are told besides the configuration."""

    last: int
    """Updates to be done, from 1: the alarm's step."""
    batch: int
    """The batch of that step."""
    sample_losses: bool


def rerun(record: Record, run_dir: Path, *, single: bool) -> Rerun:
    """Run the steps up to the alarm again, in the recorded layout or, if `single`, on one process.

    Raises: ConfigError, DataError, CheckpointError: the run's files are not what they were; LaunchError: a rank failed.
    """
    then = recorded_config(record)
    checkpoint = store.newest_good(run_dir / store.FOLDER, at_most=record.alarm.step - 1)
    alone = single or is_single(then)
    world_size = 1 if single else then.parallel.tp * then.parallel.pp * (then.parallel.dp or 1)
    with _scratch() as base:
        plan = Plan(record.alarm.step, _batch(record), sample_losses=alone)
        config = _prepare(base, record, then, run_dir, plan, checkpoint[0] if checkpoint else None, single=single)
        _launch(config, world_size)
        lines = [line for line in read_metrics(config.run_dir) if line["step"] <= plan.last]
        steps = np.array([line["step"] for line in lines], dtype=np.int64)
        losses = json.loads((base / LOSSES).read_text()) if (base / LOSSES).exists() else {}
        return Rerun(
            layout=SINGLE if single else SAME,
            began=checkpoint[0].name if checkpoint else "the start",
            loss=Track(steps, np.array([line["loss"] for line in lines], dtype=np.float64)),
            grad_norm=Track(steps, np.array([line["grad_norm"] for line in lines], dtype=np.float64)),
            sample_losses={int(k): loss for k, loss in losses.items()},
        )


def recorded_config(record: Record) -> Config:
    """The configuration that a record was made under. Raises: DataError if this version cannot read it."""
    try:
        return Config.model_validate(record.header.config)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(map(str, first["loc"]))
        raise DataError(f"{record.header.id}: of another version of steadytrain: {where}: {first['msg']}") from None


def is_single(config: Config) -> bool:
    """Whether a run has one process only."""
    parallel = config.parallel
    return parallel.tp * parallel.pp * (parallel.dp or 1) == 1


def rerun_as_rank(config: Config) -> Any:
    """One rank of a rerun: train until the plan's last step; alone, find the losses of its samples too."""
    from training.run import train

    plan = Plan(**json.loads((config.run_dir.parent / PLAN).read_text()))
    with suppress(Reached):
        train(config, Until(plan.last))
    if plan.sample_losses:
        _write_sample_losses(config, plan)
    return SimpleNamespace(status="finished", val_loss=None)


class Reached(Exception):
    """The plan's last step is done."""


class Until(Stop):
    """Ends the loop on every rank at once when it begins the step after `last`; unlike a request, saves nothing."""

    def __init__(self, last: int) -> None:
        self._last = last
        super().__init__()

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "step" and value > self._last:
            raise Reached
        super().__setattr__(name, value)


def _prepare(
    base: Path, record: Record, then: Config, run_dir: Path, plan: Plan, checkpoint: Path | None, *, single: bool
) -> Config:
    """The folder of a rerun below `base`, and its configuration."""
    config = _config(then, base, plan, single=single)
    (config.run_dir / store.FOLDER).mkdir(parents=True)
    (config.run_dir / LOGS).mkdir()
    if checkpoint is not None:
        (config.run_dir / store.FOLDER / checkpoint.name).symlink_to(checkpoint.resolve())
    _rewinds(record, run_dir).write(config.run_dir)
    (config.run_dir / CONFIG).write_text(dump(config), encoding="utf-8")
    (base / PLAN).write_text(json.dumps(plan.__dict__))
    return config


def _config(then: Config, base: Path, plan: Plan, *, single: bool) -> Config:
    """The recorded configuration, without effect outside of `base`.

    What may have changed the learning rate before the alarm stays as it was; what it led to is not done again. With
    `plan.sample_losses` the state before the alarm's step is kept.
    """
    policy = then.stability.policy
    no_rollback = {key: "warn" for key, action in policy.model_dump().items() if action == "rollback"}
    policy = policy.model_copy(update={**no_rollback, "non_finite": "stop"})
    interval = plan.last - 1 if plan.sample_losses else 0
    update: dict[str, Any] = {
        "run": then.run.model_copy(update={"dir": base, "name": "rerun"}),
        "tracking": TrackingConfig(kind="none"),
        "alerts": AlertsConfig(on=()),
        "checkpoint": CheckpointConfig(interval=interval),
        "stability": then.stability.model_copy(update={"policy": policy}),
        "training": then.training.model_copy(update={"eval_interval": 0}),
    }
    if single:
        update["parallel"] = ParallelConfig(tp=1, pp=1, dp=1)
    config = then.model_copy(update=update)
    return resolve(config, 1) if single else config


def _launch(config: Config, world_size: int) -> None:
    from launcher.local import launch

    launch(config.run_dir / CONFIG, world_size, config.run_dir / LOGS, ENTRY)


def _rewinds(record: Record, run_dir: Path) -> Rewinds:
    """The run's rollbacks before the alarm: those under which the recorded steps took their batches.

    Wherever the rerun begins, they are behind it: the steps that were undone are not done again.
    """
    known = Rewinds.read(run_dir).entries
    track = record.tracks["batch"].upto(record.alarm.step)
    pairs = list(zip(track.steps.tolist(), track.values.tolist(), strict=True))
    for count in range(len(known), -1, -1):
        rewinds = Rewinds(replace(entry, to=0, complete=True) for entry in known[:count])
        if all(rewinds.batch(step - 1) == batch for step, batch in pairs):
            return rewinds
    raise DataError(f"{run_dir}: its rollbacks do not explain the batches of record {record.header.id}")


def _batch(record: Record) -> int:
    track = record.tracks["batch"]
    found = track.values[track.steps == record.alarm.step]
    if not len(found):
        raise DataError(f"{record.header.id}: has no step {record.alarm.step} to rerun")
    return int(found[0])


def _write_sample_losses(config: Config, plan: Plan) -> None:
    """Loss of each sample of the batch by itself, under the weights that the rerun left before the last step."""
    import torch

    from data.samples import Samples
    from parallel import topology as topologies
    from training.build import build_trainer
    from training.checkpoint.saver import Checkpoints
    from training.checkpoint.weights import initial_weights

    training = config.training
    topology = topologies.start(config.parallel, training.device)
    samples = Samples(config.data.sources, "train", training.sequence_length, training.seed)
    weights = initial_weights(config, topology, samples)
    trainer = build_trainer(config, topology, samples.vocab_size, weights)
    if plan.last > 1:
        Checkpoints(config, topology, trainer, samples.fingerprint).roll_back(plan.last - 1)
    losses, first = {}, plan.batch * training.global_batch_size
    with torch.no_grad():
        for k in range(first, first + training.global_batch_size):
            tokens_1T = torch.from_numpy(samples[k])[None].to(topology.device)
            logits_1TV = trainer.chunks[0](tokens_1T[:, :-1].contiguous())
            losses[k] = float(trainer.pipeline.evaluation_loss(logits_1TV, tokens_1T[:, 1:].contiguous()))
    (config.run_dir.parent / LOSSES).write_text(json.dumps(losses))
    topologies.stop()


@contextmanager
def _scratch() -> Iterator[Path]:
    """A folder for one rerun; what failed stays for whoever reads the traceback in it."""
    base = Path(tempfile.mkdtemp(prefix="steadytrain-replay-"))
    try:
        yield base
    except LaunchError:
        raise
    except BaseException:
        shutil.rmtree(base)
        raise
    shutil.rmtree(base)
