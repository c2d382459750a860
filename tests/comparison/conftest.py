"""Small studies in a temporary folder, run by a stand-in for training."""

import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from comparison.record import record_of, write_record
from comparison.study import Study, Trial, load_study
from tests.comparison.fake_trial import write_run

ROOT = Path(__file__).parents[2]
STUDY = """
name: demo
base: base.yaml
recipes:
  pre-ln: pre-ln.yaml
  sigma-reparam: {model: {reparam: {kind: sigma}}}
learning_rates: [1.0e-3, 3.0e-2]
"""


@pytest.fixture
def study_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A study of 2 recipes x 2 learning rates, without MLflow; the working folder is the study file's."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    Path("base.yaml").write_text(
        "data: {sources: [{path: corpus}]}\nmonitoring: {interval: 5}\ntraining: {steps: 60}\ntracking: {kind: none}\n"
    )
    Path("pre-ln.yaml").write_text("model: {norm_placement: pre}\n")
    Path("study.yaml").write_text(STUDY)
    return Path("study.yaml")


@pytest.fixture
def finished_study(study_file: Path) -> Study:
    """The same study with all its run folders written."""
    return write_study(load_study(study_file))


def write_study(study: Study, mode: Callable[[Trial], str | None] = lambda trial: "ok") -> Study:
    """Write the run folders that a sweep would; `mode` None: the trial has not run."""
    study.dir.mkdir(parents=True, exist_ok=True)
    write_record(record_of(study, None), study.dir)
    for trial in study.trials:
        chosen = mode(trial)
        if chosen is not None:
            write_run(trial.config, chosen)
    return study


def fake_train(mode: Callable[[Path], str] = lambda config: "ok") -> Callable[[Path], list[str]]:
    """The command of a stand-in trial; `mode` by the path of its configuration."""
    return lambda config: [sys.executable, "-m", "tests.comparison.fake_trial", str(config), mode(config)]
