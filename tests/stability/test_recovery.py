"""Policies in real training: each gets a run over an injected fault, repeats to the bit, and survives a stop."""

import json
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path

import pytest
import torch.distributed as dist

from benchmarks import injection
from configs.schema import Config
from monitoring import mlflow_store
from monitoring.recorder import read_events, read_metrics, read_summary
from stability.rewind import ROLLBACKS
from tests.distributed import spawn
from tests.training.checkpoint.test_saver import assert_same_bits, assert_same_lines
from tests.training.test_run import tiny
from tests.training.test_stop import StopAt
from training.checkpoint import store
from training.journal import Summary
from training.run import train
from training.stop import Stop

Fault = partial[AbstractContextManager[None]]

STEPS, FAULT = 48, 30
SHARED = [
    f"training.steps={STEPS}",
    "training.eval_interval=0",
    "training.eval_samples=64",
    "checkpoint.interval=10",
    "monitoring.interval=10",
    "monitoring.zoom_steps=3",
    "stability.detectors.spike.window=16",
    "stability.detectors.spike.minimum=8",
    "stability.detectors.spike.sigmas=15",  # of 16 steps: a window so short has no quiet scatter
]
BAD_BATCH: Fault = partial(injection.garbage, FAULT)
SKIP = ["stability.skip.enabled=true", "stability.skip.window=16", "stability.skip.minimum=8"]
ROLLBACK = [
    "stability.policy.loss_spike=rollback",
    "stability.policy.rollback_before=2",
    "stability.policy.rollback_after=1",
]
PULSE: Fault = partial(injection.lr_pulse, FAULT, 100.0, 12)
LOWER = [
    "stability.detectors.spike.sigmas=6",
    "stability.policy.grad_spike=lower_lr",
    "stability.policy.loss_spike=lower_lr",
    "stability.policy.lr_factor=0.01",
    "stability.policy.lr_steps=12",
]


def trained_with(fault: Fault, cfg: Config, stop_at: int | None = None) -> Summary:
    with fault():
        return train(cfg, Stop() if stop_at is None else StopAt(stop_at, dist.get_world_size() - 1))


CASES: dict[str, tuple[int, Fault, list[str], str, int]] = {
    "skip": (1, BAD_BATCH, SKIP, "skip", FAULT + 4),
    "skip, tp2 dp2": (4, BAD_BATCH, [*SKIP, "parallel.tp=2"], "skip", FAULT + 4),
    "rollback": (1, BAD_BATCH, ROLLBACK, "rollback", FAULT + 1),
    "rollback, tp2 pp2": (4, BAD_BATCH, [*ROLLBACK, "parallel.tp=2", "parallel.pp=2"], "rollback", FAULT + 1),
    "lower_lr": (1, PULSE, LOWER, "lower_lr", FAULT + 6),
}


QUICK = ("skip", "rollback")


@pytest.mark.parametrize("name", [pytest.param(n, marks=[] if n in QUICK else pytest.mark.slow) for n in CASES])
def test_the_same_bits_again_and_over_a_stop(stdlib_bytes: Path, tmp_path: Path, name: str) -> None:
    world_size, fault, policy, kind, stop_at = CASES[name]
    runs = {which: tiny(stdlib_bytes, tmp_path / which, world_size, *SHARED, *policy) for which in ("one", "two")}
    spawn(world_size, trained_with, fault, runs["one"])
    (event,) = [event for event in read_events(runs["one"].run_dir) if event["kind"] == kind]
    assert FAULT + 1 <= event["step"] <= FAULT + 3
    assert spawn(world_size, trained_with, fault, runs["two"], stop_at)[0].status == "stopped"
    assert spawn(world_size, trained_with, fault, runs["two"])[0].status == "finished"
    assert_same_lines(runs["two"], runs["one"])
    assert_same_bits(runs["two"], runs["one"])


@pytest.mark.slow
@pytest.mark.parametrize(("fault", "policy"), [(BAD_BATCH, SKIP), (BAD_BATCH, ROLLBACK), (PULSE, LOWER)])
def test_the_loss_ends_near_that_of_a_run_without_the_fault(
    stdlib_bytes: Path, tmp_path: Path, fault: Fault, policy: list[str]
) -> None:
    clean = tiny(stdlib_bytes, tmp_path / "clean", 1, *SHARED)
    rescued = tiny(stdlib_bytes, tmp_path / "rescued", 1, *SHARED, *policy)
    spawn(1, train, clean)
    spawn(1, trained_with, fault, rescued)
    ends = [read_summary(cfg.run_dir) for cfg in (clean, rescued)]
    assert ends[0] is not None and ends[1] is not None
    # These 48 steps are the steepest of the run: half a step's difference of progress is 0.1 nats.
    assert abs(ends[1]["val_loss"] - ends[0]["val_loss"]) < 0.25


def test_a_skipped_update_changes_nothing_and_is_told(stdlib_bytes: Path, tmp_path: Path) -> None:
    """With weights as they were, the next step's loss is that of the batch under them."""
    cfg = tiny(stdlib_bytes, tmp_path, 1, *SHARED, *SKIP, f"training.steps={FAULT + 1}", "checkpoint.interval=1")
    spawn(1, trained_with, BAD_BATCH, cfg)
    after, before = store.steps(cfg.run_dir / "checkpoints")[:2]
    assert store.read_manifest(after).skipped == 1 and store.read_manifest(before).skipped == 0
    tensors = [[record.sha256 for record in store.read_manifest(folder).files.values()] for folder in (after, before)]
    assert tensors[0] == tensors[1]
    (skip,) = [event for event in read_events(cfg.run_dir) if event["kind"] == "skip"]
    assert skip["step"] == FAULT + 1 and skip["loss"] == read_metrics(cfg.run_dir)[-1]["loss"]


def test_a_rollback_killed_in_the_middle_is_completed_by_the_next_start(stdlib_bytes: Path, tmp_path: Path) -> None:
    """rollbacks.json names it as begun, and checkpoints of later steps are still there."""
    through = tiny(stdlib_bytes, tmp_path / "through", 1, *SHARED, *ROLLBACK)
    killed = tiny(stdlib_bytes, tmp_path / "killed", 1, *SHARED, *ROLLBACK)
    spawn(1, trained_with, BAD_BATCH, through)
    with pytest.raises(AssertionError, match="killed here"):
        spawn(1, _killed_before_checkpoints_go, killed)
    (entry,) = json.loads((killed.run_dir / ROLLBACKS).read_text())
    assert (entry["to"], entry["spike"], entry["skip_from"], entry["complete"]) == (20, FAULT, FAULT - 2, False)
    assert store.steps(killed.run_dir / "checkpoints")[0].name == "step-00000030"
    spawn(1, trained_with, BAD_BATCH, killed)
    assert json.loads((killed.run_dir / ROLLBACKS).read_text())[0]["complete"]
    assert_same_lines(killed, through)
    assert_same_bits(killed, through)


def _killed_before_checkpoints_go(cfg: Config) -> None:
    from unittest import mock

    with BAD_BATCH(), mock.patch.object(store, "rollback", side_effect=RuntimeError("killed here")):
        train(cfg)


@pytest.mark.parametrize("moment", ["training.checkpoint.store.rollback", "training.journal.Journal.rolled_back"])
def test_a_rollback_killed_in_the_middle_is_told_by_the_next_start(
    stdlib_bytes: Path, tmp_path: Path, moment: str
) -> None:
    """As an event, and to MLflow, which else would keep the steps that were undone and refuse the new ones."""
    tracked = ["tracking.kind=mlflow", "tracking.system_metrics=false", f"training.steps={FAULT + 2}"]
    cfg = tiny(stdlib_bytes, tmp_path, 1, *SHARED, *ROLLBACK, *tracked)
    with pytest.raises(AssertionError, match="killed here"):
        spawn(1, _killed_at, moment, cfg)
    spawn(1, trained_with, BAD_BATCH, cfg)
    (event,) = [event for event in read_events(cfg.run_dir) if event["kind"] == "rollback"]
    assert (event["step"], event["to"]) == (FAULT + 1, 20) and event["reason"].startswith("loss ")
    client = mlflow_store.connect(mlflow_store.tracking_uri(cfg))
    points = client.get_metric_history((cfg.run_dir / "mlflow_run_id").read_text().strip(), "loss")
    newest = {point.step: point.value for point in sorted(points, key=lambda point: point.timestamp)}
    assert newest == {line["step"]: line["loss"] for line in read_metrics(cfg.run_dir)}


def _killed_at(moment: str, cfg: Config) -> None:
    from unittest import mock

    with BAD_BATCH(), mock.patch(moment, side_effect=RuntimeError("killed here")):
        train(cfg)


def test_rollback_without_an_earlier_checkpoint_stops(stdlib_bytes: Path, tmp_path: Path) -> None:
    cfg = tiny(stdlib_bytes, tmp_path, 1, *SHARED, *ROLLBACK, "checkpoint.interval=40")
    assert spawn(1, trained_with, BAD_BATCH, cfg)[0].status == "diverged"
    (event,) = [event for event in read_events(cfg.run_dir) if event["kind"] == "diverged"]
    assert event["reason"].endswith("no good checkpoint from before it")


def test_rollback_with_damaged_checkpoints_only_stops(stdlib_bytes: Path, tmp_path: Path) -> None:
    """Later ones, from after the batches that would be skipped, may be good."""
    cfg = tiny(stdlib_bytes, tmp_path, 1, *SHARED, *ROLLBACK, "checkpoint.interval=15")
    assert spawn(1, trained_with, BAD_BATCH, cfg, FAULT - 1)[0].status == "stopped"
    shard = next((cfg.run_dir / "checkpoints" / "step-00000015").glob("*.safetensors"))
    shard.write_bytes(shard.read_bytes()[:-1] + b"?")
    assert spawn(1, trained_with, BAD_BATCH, cfg)[0].status == "diverged"
    assert read_events(cfg.run_dir)[-1]["reason"].endswith("no good checkpoint from before it")


def test_too_many_skips_stop(stdlib_bytes: Path, tmp_path: Path) -> None:
    """A gradient that is never finite again: the limit ends the run instead of training on nothing."""
    cfg = tiny(stdlib_bytes, tmp_path, 1, *SHARED, *SKIP, "stability.skip.limit=3")
    assert spawn(1, _always_nan, cfg)[0].steps == FAULT + 4
    (event,) = [event for event in read_events(cfg.run_dir) if event["kind"] == "diverged"]
    assert "4 updates left out one after another, 3 are allowed" in event["reason"]


def _always_nan(cfg: Config) -> Summary:
    from contextlib import ExitStack

    with ExitStack() as faults:
        for step in range(FAULT, STEPS):
            faults.enter_context(injection.nan_gradient(step, 0, "layers.0.feedforward.up.weight"))
        return train(cfg)
