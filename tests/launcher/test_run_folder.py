"""Two runs never share a folder, and nothing but a run is deleted."""

import pytest

from configs.errors import ConfigError
from configs.load import load
from configs.schema import Config
from launcher.run_folder import alone, claim


@pytest.fixture
def config(tmp_path, monkeypatch) -> Config:
    monkeypatch.chdir(tmp_path)
    return Config.model_validate({"data": {"sources": [{"path": "x"}]}, "run": {"name": "a"}})


def refusal(config: Config, *, overwrite: bool = False) -> str:
    with pytest.raises(ConfigError) as caught:
        claim(config, overwrite=overwrite)
    return str(caught.value)


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
    assert refusal(config) == ("runs/a: holds a run already; choose another run.name, or delete it with --overwrite")
    assert (config.run_dir / "metrics.jsonl").exists()
    claim(config, overwrite=True)
    assert not (config.run_dir / "metrics.jsonl").exists()


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
    with alone(config):  # free again
        claim(config, overwrite=False)


def test_a_lock_that_cannot_be_written(config):
    (config.run_dir.parent).write_text("a file where the runs folder should be")
    with pytest.raises(ConfigError, match=r"^run.dir = runs: cannot write runs/a: "), alone(config):
        pass
