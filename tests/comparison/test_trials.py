"""Which command runs a trial: one that goes on, or one that begins again."""

from pathlib import Path

import pytest

from comparison.study import Trial, load_study
from comparison.trials import train_command
from configs.checks import resolve
from configs.load import dump


@pytest.fixture
def half_finished(study_file: Path) -> Trial:
    """A trial whose run folder has a checkpoint, as training leaves it: its configuration resolved for one process."""
    trial = load_study(study_file, ["checkpoint.interval=10"]).trials[0]
    (trial.config.run_dir / "checkpoints" / "step-00000010").mkdir(parents=True)
    (trial.config.run_dir / "config.yaml").write_text(dump(resolve(trial.config, 1)))
    Path("trial.yaml").write_text(dump(trial.config))
    return trial


def begins_again() -> bool:
    return "--overwrite" in train_command(Path("trial.yaml"))


def test_a_trial_with_checkpoints_goes_on(half_finished: Trial) -> None:
    assert not begins_again()


def test_a_trial_without_checkpoints_begins_again(half_finished: Trial) -> None:
    (half_finished.config.run_dir / "checkpoints" / "step-00000010").rmdir()
    assert begins_again()


def test_a_trial_that_was_another_begins_again(half_finished: Trial) -> None:
    config = half_finished.config
    weaker = config.model_copy(update={"optimizer": config.optimizer.model_copy(update={"weight_decay": 0.1})})
    Path("trial.yaml").write_text(dump(weaker))
    assert begins_again()


def test_where_it_was_tracked_does_not_matter(half_finished: Trial) -> None:
    Path("trial.yaml").write_text(dump(half_finished.tracked_under("sqlite:///other.db", "parent").config))
    assert not begins_again()
