"""Two runs never share a folder, a run with checkpoints is continued, and nothing but a run is deleted."""

import shutil
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
from safetensors.numpy import save_file

from configs.errors import CheckpointError, ConfigError, DataError, LaunchError
from configs.load import load
from configs.schema import Config
from data.prepare import prepare
from data.samples import Samples
from launcher.run_folder import alone, claim
from training.checkpoint import store


@pytest.fixture
def config(tmp_path, monkeypatch) -> Config:
    monkeypatch.chdir(tmp_path)
    return Config.model_validate({"data": {"sources": [{"path": "x"}]}, "run": {"name": "a"}})


@pytest.fixture
def checkpointed(config, tmp_path) -> Config:
    """A run that was killed after its second checkpoint."""
    (tmp_path / "corpus").mkdir()
    for name in "abcdefgh":
        (tmp_path / "corpus" / name).write_text(name * 2000)
    prepare([str(tmp_path / "corpus")], Path("x"), workers=1, progress=False)
    claim(config, overwrite=False)
    (config.run_dir / "metrics.jsonl").write_text('{"step": 25}\n')
    fingerprint = Samples(config.data.sources, "train", config.training.sequence_length, 0).fingerprint
    for step in (10, 20):
        scratch = store.begin(config.run_dir / "checkpoints", step)
        save_file({"w": np.zeros(2)}, scratch / "w.safetensors")
        manifest = store.Manifest(
            step=step,
            created=float(step),
            layout={},
            config=config.model_dump(mode="json"),
            data_fingerprint=fingerprint,
            journal={},
            files={"w.safetensors": store.describe(scratch / "w.safetensors")},
        )
        store.commit(scratch, manifest)
    return config


def refusal(config: Config, *, overwrite: bool = False, fresh: bool = False) -> str:
    with pytest.raises(ConfigError) as caught:
        claim(config, overwrite=overwrite, fresh=fresh)
    return str(caught.value)


def training(config: Config, **values: object) -> Config:
    return config.model_copy(update={"training": config.training.model_copy(update=values)})


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_the_resolved_configuration_is_in_the_folder(config):
    path = claim(config, overwrite=False)
    assert load(path) == config
    assert sorted(entry.name for entry in config.run_dir.iterdir()) == ["config.yaml", "logs"]


def test_a_launch_that_never_trained_leaves_the_folder_free(config):
    claim(config, overwrite=False)
    claim(config, overwrite=False)


def test_a_run_is_not_mixed_with_another(config):
    claim(config, overwrite=False)
    (config.run_dir / "metrics.jsonl").write_text("{}")
    assert refusal(config) == (
        "runs/a: holds a run already, without a checkpoint to continue it from (checkpoint.interval sets when they are "
        "saved); choose another run.name, or delete it with --overwrite"
    )
    assert (config.run_dir / "metrics.jsonl").exists()
    claim(config, overwrite=True)
    assert not (config.run_dir / "metrics.jsonl").exists()


def test_half_a_checkpoint_is_none(config):
    claim(config, overwrite=False)
    store.begin(config.run_dir / "checkpoints", 20)
    assert refusal(config).startswith("runs/a: holds a run already, without a checkpoint to continue it from")


def test_a_run_with_checkpoints_is_continued(checkpointed):
    before = contents(checkpointed.run_dir)
    longer = training(checkpointed, steps=900)
    path = claim(longer, overwrite=False)
    assert load(path) == longer
    assert contents(checkpointed.run_dir) == before | {str(path): path.read_bytes()}


def test_what_would_train_something_else_changes_nothing(checkpointed):
    before = contents(checkpointed.run_dir)
    with pytest.raises(CheckpointError, match=r"^runs/a/checkpoints/step-00000020: the run cannot be continued with"):
        claim(training(checkpointed, seed=1), overwrite=False)
    prepare(["corpus/a", "corpus/b", "corpus/c"], Path("x"), workers=1, progress=False, force=True)
    with pytest.raises(CheckpointError, match=r"\n  data.sources = x x 1 \(fingerprint "):
        claim(checkpointed, overwrite=False)
    with pytest.raises(DataError):
        claim(training(checkpointed, sequence_length=100_000), overwrite=False)
    assert contents(checkpointed.run_dir) == before


def test_an_unreadable_checkpoint_is_left_to_training_to_judge(checkpointed):
    newest, oldest = store.steps(checkpointed.run_dir / "checkpoints")
    (newest / "manifest.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"^runs/a/checkpoints/step-00000010: the run cannot be continued"):
        claim(training(checkpointed, seed=1), overwrite=False)
    (oldest / "manifest.json").write_text("{")
    claim(training(checkpointed, seed=1), overwrite=False)  # nothing to compare with


def test_fresh_takes_a_folder_without_a_run(config):
    claim(config, overwrite=False, fresh=True)


def test_fresh_continues_nothing(checkpointed):
    before = contents(checkpointed.run_dir)
    assert refusal(checkpointed, fresh=True) == (
        "runs/a: holds checkpoints up to step-00000020; without --fresh the run is continued, with --overwrite "
        "deleted; or choose another run.name"
    )
    assert refusal(checkpointed, fresh=True, overwrite=True) == (
        "command line: --fresh, --overwrite: only one of them; --overwrite deletes the earlier run"
    )
    assert contents(checkpointed.run_dir) == before


def test_overwrite_deletes_checkpoints_too(checkpointed):
    claim(training(checkpointed, seed=1), overwrite=True)
    assert sorted(entry.name for entry in checkpointed.run_dir.iterdir()) == ["config.yaml", "logs"]


def test_a_kill_while_a_run_is_deleted_leaves_no_half_of_it(checkpointed):
    """The next command, with or without --overwrite, begins anew and does not go on from what was to be gone."""
    with mock.patch.object(shutil, "rmtree", side_effect=KeyboardInterrupt), pytest.raises(KeyboardInterrupt):
        claim(checkpointed, overwrite=True)
    assert not checkpointed.run_dir.exists()
    claim(checkpointed, overwrite=False)
    assert {path.name for path in checkpointed.run_dir.iterdir()} <= {"config.yaml", "logs"}
    assert [path.name for path in checkpointed.run_dir.parent.iterdir() if path.name.endswith(".deleted")] == []


def test_a_link_to_a_run_is_not_overwritten(checkpointed, tmp_path):
    run = tmp_path / "elsewhere"
    checkpointed.run_dir.rename(run)
    checkpointed.run_dir.symlink_to(run)
    with pytest.raises(ConfigError, match="is a link to"):
        claim(checkpointed, overwrite=True)
    assert (run / "checkpoints").is_dir()


def test_only_runs_are_deleted(config):
    config.run_dir.mkdir(parents=True)
    (config.run_dir / "thesis.tex").write_text("years")
    expected = "runs/a: holds files that are no run (there is no config.yaml); choose another run.name"
    assert refusal(config) == refusal(config, overwrite=True) == expected


def test_runs_inside_are_not_deleted(config):
    inner = config.model_copy(update={"run": config.run.model_copy(update={"name": "a/b"})})
    claim(config, overwrite=False)
    claim(inner, overwrite=False)
    expected = "runs/a: holds another run, runs/a/b; choose another run.name"
    assert refusal(config) == refusal(config, overwrite=True) == expected


def test_a_folder_that_cannot_be_made_is_one_line(config, tmp_path):
    (tmp_path / "runs").write_text("a file")
    assert refusal(config) == "run.dir = runs: cannot write runs/a: Not a directory"


def test_two_runs_at_once_do_not_share_a_folder(config):
    under_way = pytest.raises(ConfigError, match=r"^runs/a: a run is under way in it; wait for it or end it, or choose")
    with alone(config), under_way, alone(config):
        pass
    with pytest.raises(LaunchError, match="a run is under way in it"), alone(config), alone(config, wait_s=0.1):
        pass  # waited for in vain: it may yet end
    with alone(config):  # free again
        claim(config, overwrite=False)


def test_a_lock_that_cannot_be_written(config):
    (config.run_dir.parent).write_text("a file where the runs folder should be")
    with pytest.raises(ConfigError, match=r"^run.dir = runs: cannot write runs/a: "), alone(config):
        pass


def test_the_same_run_killed_before_its_first_checkpoint_begins_again(config):
    saving = config.model_copy(update={"checkpoint": config.checkpoint.model_copy(update={"interval": 10})})
    claim(saving, overwrite=False)
    (config.run_dir / "metrics.jsonl").write_text('{"step": 5}\n')
    claim(saving, overwrite=False)
    assert (config.run_dir / "metrics.jsonl").exists()  # the recorder cuts it when training begins
    assert "holds a run already" in refusal(training(saving, steps=7))  # another run
    assert "holds a run already" in refusal(saving, fresh=True)
    (config.run_dir / "summary.json").write_text("{}")
    assert "holds a run already" in refusal(saving)  # it ended


def test_without_checkpoints_nothing_begins_again_by_itself(config):
    claim(config, overwrite=False)
    (config.run_dir / "metrics.jsonl").write_text('{"step": 5}\n')
    assert "holds a run already" in refusal(config)
