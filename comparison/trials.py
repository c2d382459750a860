"""What a study folder has of its trials: which are left to run, what each runs, and by which command."""

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from comparison.record import STOPPED, record_of, trial_config, write_record
from comparison.study import Study, Trial
from configs.checks import resolve
from configs.errors import ConfigError
from configs.flatten import flatten
from configs.load import dump, load
from configs.schema import Config
from monitoring.mlflow_store import default_uri
from monitoring.recorder import SUMMARY
from monitoring.tracker import NoTracker, Tracker

CHECKPOINTS = "checkpoints/step-*"
RUN_CONFIG = "config.yaml"
MAY_DIFFER = ("tracking.", "training.device")
"""Of a run begun earlier: where it was tracked, and the device that `auto` chose."""


def unfinished(study: Study, trials: Sequence[Trial]) -> list[Trial]:
    """Those of the trials without a result.

    Raises: ConfigError if a result of the study, be it of these trials or not, is of another configuration: they are
    compared with each other.
    """
    with_result = {trial for trial in study.trials if _has_result(study, trial)}
    return [trial for trial in trials if trial not in with_result]


def has_ended(trial: Trial) -> bool:
    """Whether the trial has ended, by itself or stopped early as hopeless."""
    return any((trial.config.run_dir / name).exists() for name in (SUMMARY, STOPPED))


def _has_result(study: Study, trial: Trial) -> bool:
    if not has_ended(trial):
        return False
    path = trial_config(study, trial.config.run.name)
    if not path.exists():
        raise ConfigError(f"{path}: is gone, so what {trial.config.run_dir} ran is unknown; delete {study.dir}")
    then, now = _settings(load(path)), _settings(trial.config)
    for key, value in now.items():
        if then.get(key) != value:
            raise ConfigError(
                f"{study.path}: {key} = {value}: the finished trial {trial.config.run_dir} ran with {then.get(key)}; "
                f"give the study another name, or delete {study.dir}"
            )
    return True


def prepare(study: Study, pending: Sequence[Trial], tracker: Tracker | NoTracker) -> list[Trial]:
    """Write study.yaml and the configurations of the trials to run, as children of the study's MLflow run."""
    tracking = study.base.tracking
    uri = tracking.uri
    if tracking.kind == "mlflow" and uri is None and "MLFLOW_TRACKING_URI" not in os.environ:
        uri = default_uri(study.base.run.dir)  # the trials' own default would be a store inside the study folder
    write_record(record_of(study, uri), study.dir)
    prepared = [trial.tracked_under(uri, tracker.run_id()) for trial in pending]
    for trial in prepared:
        path = trial_config(study, trial.config.run.name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(dump(trial.config), encoding="utf-8")
    return prepared


def train_command(path: Path) -> list[str]:
    """The command that runs one trial: it goes on from the trial's own checkpoints, and without any begins again."""
    again = [] if _can_go_on(load(path)) else ["--overwrite"]
    return [sys.executable, "-m", "launcher", "train", str(path), *again]


def logs(study: Study, trial: Trial) -> tuple[Path, Path]:
    """Files of the trial's stdout and stderr."""
    base = study.dir / "logs" / trial.config.run.name
    return base.with_name(base.name + ".out"), base.with_name(base.name + ".err")


def processes(config: Config) -> int:
    """Processes of one trial."""
    parallel = config.parallel
    return parallel.tp * parallel.pp * (parallel.dp or 1)


def _can_go_on(config: Config) -> bool:
    """Whether the run folder has checkpoints of this very configuration."""
    earlier = config.run_dir / RUN_CONFIG
    if not earlier.exists() or not any(config.run_dir.glob(CHECKPOINTS)):
        return False
    try:
        then = _settings(load(earlier))
    except ConfigError:  # written by another version
        return False
    now = _settings(resolve(config, processes(config)))
    return all(then.get(key) == value for key, value in now.items() if not key.startswith(MAY_DIFFER))


def _settings(config: Config) -> dict[str, Any]:
    """A trial's dotted keys, without where it is tracked."""
    return dict(flatten(config.model_dump(mode="json", exclude={"tracking"})))
