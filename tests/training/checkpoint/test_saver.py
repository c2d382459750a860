"""Runs that stop and go on, through the real loop: the same lines and the same bits as a run that never stopped."""

from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from configs.errors import CheckpointError
from configs.schema import Config
from monitoring.recorder import read_events, read_metrics
from tests.distributed import spawn
from tests.training.test_run import tiny
from training.checkpoint import store
from training.journal import Summary
from training.run import train

LAYOUTS = {
    "one process": (1, []),
    "tp2 pp2": (4, ["parallel.tp=2", "parallel.pp=2"]),
    "pp2 dp2 ZeRO-1": (4, ["parallel.pp=2", "training.micro_batch_size=4"]),
    "pp2 dp2 ZeRO-2": (4, ["parallel.pp=2", "parallel.zero_stage=2", "training.micro_batch_size=4"]),
    "interleaved": (2, ["parallel.pp=2", "parallel.schedule=interleaved_1f1b"]),
    "accumulation and recompute": (1, ["training.micro_batch_size=4", "training.recompute=full"]),
}
KINDS = {"sigmaReparam": [], "pre-LN": ["model.reparam.kind=none"]}
SAME = ("loss", "grad_norm", "lr", "val_loss", "entropy_mean", "entropy_min", "max_logit", "sigma_max", "gamma_max")
SHORT = ["checkpoint.interval=3", "monitoring.interval=2", "training.eval_interval=4", "training.eval_samples=16"]
CASES = [
    pytest.param(name, precision, kind, id=f"{name}, {precision}, {kind}", marks=[] if quick else pytest.mark.slow)
    for name in LAYOUTS
    for precision in ("fp32", "bf16")
    for kind in KINDS
    for quick in [(precision, kind) == ("fp32", "sigmaReparam") or name == "tp2 pp2"]
]


def trained(world_size: int, cfg: Config) -> Summary:
    return spawn(world_size, train, cfg)[0]


@pytest.mark.parametrize(("name", "precision", "kind"), CASES)
def test_stopped_and_resumed_equals_never_stopped(
    stdlib_bytes: Path, tmp_path: Path, name: str, precision: str, kind: str
) -> None:
    world_size, layout = LAYOUTS[name]
    overrides = [*layout, *KINDS[kind], *SHORT, f"training.precision={precision}"]
    through = tiny(stdlib_bytes, tmp_path / "through", world_size, *overrides, "training.steps=12")
    first = tiny(stdlib_bytes, tmp_path / "stopped", world_size, *overrides, "training.steps=6")
    second = tiny(stdlib_bytes, tmp_path / "stopped", world_size, *overrides, "training.steps=12")
    expected = trained(world_size, through)
    trained(world_size, first)
    actual = trained(world_size, second)
    assert (actual.val_loss, actual.initial_loss, actual.steps) == (expected.val_loss, expected.initial_loss, 12)
    assert_same_lines(second, through)
    assert_same_bits(second, through)


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
    [(1, []), (2, ["parallel.tp=2"]), (2, ["parallel.pp=2", "parallel.schedule=zbv"]), (2, ["parallel.zero_stage=2"])],
    ids=lambda target: " ".join(target[1]) or "one process",
)
def test_a_run_goes_on_in_another_layout(stdlib_bytes: Path, tmp_path: Path, target: tuple[int, list[str]]) -> None:
    world_size, layout = target
    shared = [*SHORT, "optimizer.lr=1e-3"]
    through = tiny(stdlib_bytes, tmp_path / "a", 4, *shared, *LAYOUTS["tp2 pp2"][1], "training.steps=16")
    first = tiny(stdlib_bytes, tmp_path / "b", 4, *shared, *LAYOUTS["tp2 pp2"][1], "training.steps=6")
    second = tiny(stdlib_bytes, tmp_path / "b", world_size, *shared, *layout, "training.steps=16")
    trained(4, through)
    trained(4, first)
    trained(world_size, second)
    for ours, theirs in zip(read_metrics(second.run_dir)[6:], read_metrics(through.run_dir)[6:], strict=True):
        # Ten steps of fp32 sums in another order; the state they start from is equal (test_state.py).
        assert ours["loss"] == pytest.approx(theirs["loss"], rel=2e-5), ours["step"]


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
