"""Runs that are killed, damaged, moved or short of disk, and go on, through the real loop."""

import errno
import io
import itertools
import os
import shutil
import threading
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from configs.errors import CheckpointError
from configs.schema import Config
from monitoring.recorder import read_events, read_metrics, read_summary
from tests.distributed import spawn
from tests.training.test_run import tiny
from training.checkpoint import store, tensor_file
from training.journal import Journal, Summary
from training.run import train

TP2_PP2 = ["parallel.tp=2", "parallel.pp=2"]
NUMBERS = ("loss", "grad_norm", "lr", "val_loss", "sharpness", "qk_clipped")
SAME = (*NUMBERS, "entropy_mean", "entropy_min", "max_logit", "sigma_max", "gamma_max")
SHORT = ["checkpoint.interval=3", "monitoring.interval=2", "training.eval_interval=4", "training.eval_samples=16"]


def trained(world_size: int, cfg: Config) -> Summary:
    return spawn(world_size, train, cfg)[0]


def test_a_run_killed_between_checkpoints_repeats_only_the_steps_after_the_last(
    stdlib_bytes: Path, tmp_path: Path
) -> None:
    """As after a crash at step 8: lines up to 8, a checkpoint of 6."""
    through = tiny(stdlib_bytes, tmp_path / "through", 1, *SHORT, "training.steps=12")
    crashed = tiny(stdlib_bytes, tmp_path / "crashed", 1, *SHORT, "training.steps=8")
    resumed = tiny(stdlib_bytes, tmp_path / "crashed", 1, *SHORT, "training.steps=12")
    trained(1, through)
    trained(1, crashed)
    for folder in store.steps(crashed.run_dir / "checkpoints"):
        if folder.name == "step-00000008":
            folder.rename(folder.with_name(".step-00000008.partial"))
    trained(1, resumed)
    (event,) = [event for event in read_events(resumed.run_dir) if event["kind"] == "resume"]
    assert event["step"] == 6
    assert_same_lines(resumed, through)
    assert_same_bits(resumed, through)


def test_a_damaged_checkpoint_is_passed_over_and_named(stdlib_bytes: Path, tmp_path: Path) -> None:
    cfg = tiny(stdlib_bytes, tmp_path, 2, "parallel.tp=2", *SHORT, "training.steps=6")
    trained(2, cfg)
    newest, older = store.steps(cfg.run_dir / "checkpoints")
    file = next(newest.glob("shard-00002-*"))
    content = bytearray(file.read_bytes())
    content[-5] ^= 1
    file.write_bytes(content)
    trained(2, tiny(stdlib_bytes, tmp_path, 2, "parallel.tp=2", *SHORT, "training.steps=9"))
    (event,) = [event for event in read_events(cfg.run_dir) if event["kind"] == "resume"]
    assert event["step"] == 3 and older.name in event["reason"] and file.name in event["reason"]
    for folder in store.steps(cfg.run_dir / "checkpoints"):
        store.verify(folder, read_bytes=True)


@pytest.mark.parametrize(
    "target",
    [
        (1, []),
        pytest.param((2, ["parallel.tp=2"]), marks=pytest.mark.slow),
        pytest.param((2, ["parallel.pp=2", "parallel.schedule=zbv"]), marks=pytest.mark.slow),
        pytest.param((2, ["parallel.zero_stage=2"]), marks=pytest.mark.slow),
    ],
    ids=lambda target: " ".join(target[1]) or "one process",
)
def test_a_run_goes_on_in_another_layout(stdlib_bytes: Path, tmp_path: Path, target: tuple[int, list[str]]) -> None:
    world_size, layout = target
    shared = [*SHORT, "optimizer.lr=1e-3"]
    through = tiny(stdlib_bytes, tmp_path / "a", 4, *shared, *TP2_PP2, "training.steps=16")
    first = tiny(stdlib_bytes, tmp_path / "b", 4, *shared, *TP2_PP2, "training.steps=6")
    second = tiny(stdlib_bytes, tmp_path / "b", world_size, *shared, *layout, "training.steps=16")
    trained(4, through)
    trained(4, first)
    trained(world_size, second)
    for ours, theirs in zip(read_metrics(second.run_dir)[6:], read_metrics(through.run_dir)[6:], strict=True):
        # Ten steps of fp32 sums in another order; the state they start from is equal (test_state.py).
        assert ours["loss"] == pytest.approx(theirs["loss"], rel=2e-5), ours["step"]


def test_a_checkpoint_has_the_validation_loss_of_its_own_step_or_none(stdlib_bytes: Path, tmp_path: Path) -> None:
    cfg = tiny(stdlib_bytes, tmp_path, 1, *SHORT, "training.steps=8", "checkpoint.keep=9")
    trained(1, cfg)
    saved = {m.step: m.val_loss for m in map(store.read_manifest, store.steps(cfg.run_dir / "checkpoints"))}
    assert saved == {3: None, 6: None, 8: read_metrics(cfg.run_dir)[7]["val_loss"]}


def test_a_run_that_now_ends_at_a_checkpoint_is_evaluated_there(stdlib_bytes: Path, tmp_path: Path) -> None:
    short = tiny(stdlib_bytes, tmp_path / "short", 1, *SHORT, "training.steps=6")
    longer = tiny(stdlib_bytes, tmp_path / "cut", 1, *SHORT, "training.steps=8")
    cut = tiny(stdlib_bytes, tmp_path / "cut", 1, *SHORT, "training.steps=6")
    trained(1, short)
    trained(1, longer)
    shutil.rmtree(store.steps(cut.run_dir / "checkpoints")[0])
    assert trained(1, cut).val_loss == trained(1, short).val_loss


def test_a_finished_run_typed_again_keeps_its_summary(stdlib_bytes: Path, tmp_path: Path) -> None:
    cfg = tiny(stdlib_bytes, tmp_path, 1, *SHORT, "training.steps=6")
    trained(1, cfg)
    before = read_summary(cfg.run_dir)
    trained(1, cfg)
    assert before is not None and read_summary(cfg.run_dir) == before


def test_an_interrupt_during_a_save_ends_it_first(stdlib_bytes: Path, tmp_path: Path) -> None:
    cfg = tiny(stdlib_bytes, tmp_path, 1, *SHORT, "training.steps=6")
    assert spawn(1, interrupted_during_the_first_save, cfg) == [None]
    assert [folder.name for folder in store.steps(cfg.run_dir / "checkpoints")] == ["step-00000003"]
    assert [event["kind"] for event in read_events(cfg.run_dir)] == ["checkpoint", "failed"]


def interrupted_during_the_first_save(cfg: Config) -> None:
    """The save begins once training has been interrupted, in its step 4."""
    interrupted, begin = threading.Event(), store.begin

    def begin_late(folder: Path, step: int) -> Path:
        assert interrupted.wait(60)
        return begin(folder, step)

    def interrupt(journal: Journal, step: int, **_: object) -> None:
        if step == 4:
            interrupted.set()
            raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(store, "begin", begin_late)
        patch.setattr(Journal, "step", interrupt)
        with pytest.raises(KeyboardInterrupt):
            train(cfg)


def test_another_model_is_refused_on_every_rank(stdlib_bytes: Path, tmp_path: Path) -> None:
    trained(1, tiny(stdlib_bytes, tmp_path, 1, *SHORT, "training.steps=3"))
    other = tiny(stdlib_bytes, tmp_path, 2, *SHORT, "training.steps=6", "model.norm=rmsnorm", "parallel.tp=2")
    messages = spawn(2, refused, other)
    assert messages[0] == messages[1] and "model.norm" in messages[0]


def refused(cfg: Config) -> str:
    with pytest.raises(CheckpointError) as caught:
        train(cfg)
    return str(caught.value)


def test_a_write_that_fails_is_reported_and_training_goes_on(stdlib_bytes: Path, tmp_path: Path) -> None:
    cfg = tiny(stdlib_bytes, tmp_path, 2, "parallel.tp=2", *SHORT, "training.steps=6")
    cfg.run_dir.mkdir(parents=True)
    (cfg.run_dir / "checkpoints").write_text("a file where the folder should be")
    assert trained(2, cfg).status == "finished"
    events = read_events(cfg.run_dir)
    assert [(event["step"], event["kind"]) for event in events] == [(3, "checkpoint_failed"), (6, "checkpoint_failed")]


@pytest.mark.parametrize("asynchronous", ["true", "false"])
def test_a_disk_that_is_full_for_one_rank_costs_that_checkpoint_only(
    stdlib_bytes: Path, tmp_path: Path, asynchronous: str
) -> None:
    overrides = ["parallel.tp=2", *SHORT, "training.steps=9", f"checkpoint.asynchronous={asynchronous}"]
    cfg = tiny(stdlib_bytes, tmp_path, 2, *overrides)
    assert spawn(2, train_with_a_full_disk_at_the_second_save, cfg)[0].status == "finished"
    events = [event for event in read_events(cfg.run_dir) if event["kind"].startswith("checkpoint")]
    assert [(event["step"], event["kind"]) for event in events] == [
        (3, "checkpoint"), (6, "checkpoint_failed"), (9, "checkpoint"),
    ]  # fmt: skip
    assert "rank 1: " in events[1]["reason"] and os.strerror(errno.ENOSPC) in events[1]["reason"]
    good = store.steps(cfg.run_dir / "checkpoints")
    assert [folder.name for folder in good] == ["step-00000009", "step-00000003"]
    for folder in good:
        store.verify(folder, read_bytes=True)


def test_a_save_that_failed_does_not_stay_on_the_disk_it_filled(stdlib_bytes: Path, tmp_path: Path) -> None:
    cfg = tiny(stdlib_bytes, tmp_path, 1, *SHORT, "training.steps=6")
    assert spawn(1, train_with_a_full_disk_at_the_second_save, cfg)[0].status == "finished"
    assert sorted(os.listdir(cfg.run_dir / "checkpoints")) == ["latest", "step-00000003"]


def train_with_a_full_disk_at_the_second_save(cfg: Config) -> Summary:
    """For the last rank, in the middle of its file."""
    write, calls = tensor_file._write, itertools.count()

    def full(file: io.FileIO, block: memoryview) -> None:
        if next(calls) == 1 and torch.distributed.get_rank() == torch.distributed.get_world_size() - 1:
            write(file, block[: len(block) // 2])
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        write(file, block)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tensor_file, "_write", full)
        return train(cfg)


def test_files_are_the_same_whether_training_waits_or_not(stdlib_bytes: Path, tmp_path: Path) -> None:
    layout = ["parallel.pp=2", "training.micro_batch_size=4", *SHORT, "training.steps=6"]
    beside = tiny(stdlib_bytes, tmp_path / "beside", 4, *layout)
    waiting = tiny(stdlib_bytes, tmp_path / "waiting", 4, *layout, "checkpoint.asynchronous=false")
    trained(4, beside)
    trained(4, waiting)
    ours, theirs = (store.steps(cfg.run_dir / "checkpoints") for cfg in (beside, waiting))
    assert [folder.name for folder in ours] == [folder.name for folder in theirs] == ["step-00000006", "step-00000003"]
    for mine, other in zip(ours, theirs, strict=True):
        assert store.read_manifest(mine).files == store.read_manifest(other).files


def assert_same_lines(ours: Config, theirs: Config) -> None:
    actual, expected = read_metrics(ours.run_dir), read_metrics(theirs.run_dir)
    assert [line["step"] for line in actual] == [line["step"] for line in expected]
    for mine, other in zip(actual, expected, strict=True):
        for key in SAME:
            # A shorter run also measures and evaluates after its own last step.
            if key in other:
                assert mine[key] == other[key], (mine["step"], key)


def assert_same_bits(ours: Config, theirs: Config) -> None:
    """Every tensor of the newest checkpoints: parameters, u, v, sigma, moments."""
    actual, expected = newest_tensors(ours), newest_tensors(theirs)
    assert actual.keys() == expected.keys()
    assert any(key[0].startswith("exp_avg_sq/") for key in actual)
    for key, tensor in expected.items():
        assert torch.equal(actual[key], tensor), key


def newest_tensors(cfg: Config) -> dict[tuple[str, str], torch.Tensor]:
    folder = store.steps(cfg.run_dir / "checkpoints")[0]
    tensors = {}
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, framework="pt") as file:
            tensors |= {(name, path.name): file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    return tensors


def test_a_run_killed_before_its_first_checkpoint_begins_again(stdlib_bytes: Path, tmp_path: Path) -> None:
    """As after a crash at step 2: two lines, no checkpoint."""
    through = tiny(stdlib_bytes, tmp_path / "through", 1, *SHORT, "training.steps=6")
    killed = tiny(stdlib_bytes, tmp_path / "killed", 1, *SHORT, "training.steps=6")
    trained(1, through)
    killed.run_dir.mkdir(parents=True)
    lines = (through.run_dir / "metrics.jsonl").read_text().splitlines(keepends=True)
    (killed.run_dir / "metrics.jsonl").write_text("".join(lines[:2]))
    trained(1, killed)
    assert "restart" in [event["kind"] for event in read_events(killed.run_dir)]
    assert len((killed.run_dir / "metrics.jsonl").read_text().splitlines()) == 6
    assert_same_lines(killed, through)
    assert_same_bits(killed, through)
