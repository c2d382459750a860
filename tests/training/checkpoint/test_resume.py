"""What may change between a checkpoint and the run that continues it, and what may not."""

import subprocess
import sys
from pathlib import Path

import pytest

from configs.checks import resolve
from configs.errors import CheckpointError
from configs.load import load
from configs.schema import Config
from training.checkpoint.manifest import FileRecord, Manifest
from training.checkpoint.resume import changes, require_compatible

ROOT = Path(__file__).parents[3]
TINY = ROOT / "configs" / "tiny.yaml"
FOLDER = Path("runs/tiny/checkpoints/step-00000020")


def config(*overrides: str, world_size: int = 1) -> Config:
    return resolve(load(TINY, ["training.label_smoothing=0", *overrides]), world_size)


def manifest(saved: Config) -> Manifest:
    written = Manifest(
        format=1,
        step=20,
        created=1.0,
        layout={"tp": 1},
        config=saved.model_dump(mode="json"),
        data_fingerprint="a" * 64,
        val_loss=None,
        journal={},
        files={"x.safetensors": FileRecord(size=1, sha256="0" * 64)},
    )
    return Manifest.model_validate_json(written.model_dump_json())  # as it comes back from the disk


def test_nothing_changed():
    assert changes(manifest(config()), config(), "a" * 64) == []


@pytest.mark.parametrize(
    "override",
    [
        "model.hidden_size=128",
        "model.layers=8",
        "model.norm=rmsnorm",
        "model.init_std=0.5",
        "model.reparam.kind=none",
        "model.reparam.qkv=qkv",
        "training.seed=7",
        "training.global_batch_size=32",
        "training.sequence_length=32",
        "training.label_smoothing=0.1",
        "training.z_loss=0.1",
        "optimizer.name=muon",
    ],
)
def test_what_is_trained_does_not_change(override):
    key, _, value = override.partition("=")
    before, now = config(), config(override)
    assert before != now, f"{override} is what configs/tiny.yaml says already"
    assert f"{key} = {value}: the checkpoint has " in "\n".join(changes(manifest(before), now, "a" * 64))


@pytest.mark.parametrize(
    ("overrides", "world_size"),
    [
        (["parallel.tp=2", "parallel.pp=2", "parallel.schedule=interleaved_1f1b", "parallel.zero_stage=2"], 8),
        (["training.steps=5000", "training.precision=bf16", "training.recompute=full", "training.eval_interval=7"], 1),
        (["training.micro_batch_size=1", "training.eval_samples=3", "training.device=cpu"], 1),
        (["optimizer.lr=0.5", "optimizer.betas=[0.5,0.6]", "optimizer.clip=0", "optimizer.weight_decay=0.1"], 1),
        (["optimizer.muon_momentum=0.5", "optimizer.sam_rho=0.1", "optimizer.qk_clip=5"], 1),
        (["schedule.kind=cosine", "schedule.warmup_steps=3", "schedule.min_ratio=0"], 1),
        (["monitoring.interval=1", "checkpoint.interval=1", "tracking.kind=none", "run.name=x", "run.dir=y"], 1),
        (["data.sources.0.path=moved/elsewhere"], 1),
    ],
)
def test_how_it_is_trained_may_change(overrides, world_size):
    before, now = config(), config(*overrides, world_size=world_size)
    assert before != now
    assert changes(manifest(before), now, "a" * 64) == []


def test_other_data_are_told_by_their_fingerprint():
    (line,) = changes(manifest(config()), config("data.sources.0.weight=2"), "b" * 64)
    path = config().data.sources[0].path
    assert line == (
        f"data.sources = {path} x 2 (fingerprint {'b' * 12}): the checkpoint has {path} x 1 (fingerprint {'a' * 12})"
    )


def test_data_are_not_blamed_for_another_seed():
    assert changes(manifest(config()), config("training.seed=7"), "b" * 64) == [
        "training.seed = 7: the checkpoint has 0"
    ]


def test_a_key_that_this_version_does_not_know():
    saved = manifest(config())
    saved.config["model"]["mixture"] = 4
    assert changes(saved, config(), "a" * 64) == ["model.mixture = no such key: the checkpoint has 4"]


def test_a_key_that_the_checkpoints_version_did_not_know_has_its_default():
    saved = manifest(config())
    for key in ("bias", "low_rank", "residual", "attention_softcap"):
        del saved.config["model"][key]
    del saved.config["training"]["z_loss"]
    assert changes(saved, config(), "a" * 64) == []
    assert changes(saved, config("model.bias=true", "model.residual.kind=rezero"), "a" * 64) == [
        "model.bias = true: the checkpoint has false",
        "model.residual.kind = rezero: the checkpoint has plain",
    ]


def test_the_refusal_names_every_difference_and_what_may_change():
    require_compatible(FOLDER, manifest(config()), config("training.steps=900"), "a" * 64)
    with pytest.raises(CheckpointError) as caught:
        require_compatible(FOLDER, manifest(config()), config("training.seed=7", "model.layers=8"), "b" * 64)
    first, *different, last = str(caught.value).splitlines()
    assert first == (
        f"{FOLDER}: the run cannot be continued with this configuration, which trains something else; "
        "take these values back, or choose another run.name:"
    )
    assert different == ["  model.layers = 8: the checkpoint has 4", "  training.seed = 7: the checkpoint has 0"]
    assert last.startswith("What may change: parallel.*, training.steps, ")


def test_every_key_is_either_fixed_or_listed_as_changeable():
    """A key added to the schema must be put on one side."""
    from configs.describe import fields, section_of
    from training.checkpoint.resume import FIXED, MAY_CHANGE

    named = {"training": [], "optimizer": []}
    for key, info in fields().items():
        section, _, name = key.partition(".")
        if section_of(info) is None and section in named and key not in FIXED:
            named[section].append(name)
    for section, names in named.items():
        group = next(part for part in MAY_CHANGE.split(f"{section}.")[1:2])
        assert all(name in group for name in names), (section, names)
    top = {key: f"{key}.*" if section_of(info) else f" {key}," for key, info in fields().items() if "." not in key}
    assert all(top[key] in MAY_CHANGE for key in top.keys() - {"model", "training", "optimizer", "data"})


def test_torch_is_not_needed():
    script = "import sys, training.checkpoint.resume; print('torch' in sys.modules)"
    result = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
    assert result.stdout == "False\n"


def test_fewer_steps_than_were_trained_are_refused():
    saved = config()
    fewer = config("training.steps=15")
    with pytest.raises(CheckpointError, match=r"^training.steps = 15: must be at least 20, the step of runs/tiny/"):
        require_compatible(FOLDER, manifest(saved), fewer, "a" * 64)
