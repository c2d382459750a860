"""What a study folder says about itself: `study.yaml`, written by the sweep and read by analysis and report."""

from pathlib import Path
from typing import Any

import yaml
from pydantic import Field, model_validator

from comparison.study import Study
from configs.atomic import write_atomically
from configs.errors import DataError
from configs.section import Section
from monitoring.recorder import STOPPED as STOPPED  # of a trial: written by a sweep (`comparison.stopping.Stopped`)

STUDY_FILE = "study.yaml"
FAILURE = "failure.json"  # in a trial's run folder: exit code, last line of stderr, log


class TrialRecord(Section):
    """One planned trial and where it is, relative to the study folder."""

    recipe: str
    shape: str = ""
    """Name of the shape; empty where the study has none."""
    lr: float
    seed: int
    steps: int
    run_dir: Path
    config: Path


class StudyRecord(Section):
    """The resolved study."""

    name: str
    source: Path
    """The study file."""
    recipes: dict[str, dict[str, Any]]
    """Recipe name to the keys it sets; the first is the baseline."""
    shapes: dict[str, dict[str, Any]] = Field({})
    """Shape name to the keys it sets; empty where the study has none."""
    learning_rates: list[float]
    seeds: list[int]
    budget: dict[str, float] = Field({})
    """As given: {"tokens": n} or {"flops": n}; empty: the steps of the configurations."""
    stopping: dict[str, Any] = Field({})
    """The rule by which hopeless trials are stopped, as given with its defaults; empty: none."""
    steps: int
    """Of the base; a trial's own are in its record."""
    overrides: list[str] = Field([])
    """`key.sub=value` of the sweep's command line, which the study file does not have."""
    tracking_uri: str | None
    trials: list[TrialRecord]
    base: dict[str, Any]
    """The configuration all trials share."""

    @model_validator(mode="before")
    @classmethod
    def _read_older_trials(cls, values: Any) -> Any:
        """Records had no steps for each trial once: all trials ran the study's."""
        if isinstance(values, dict) and isinstance(values.get("trials"), list):
            older = [trial for trial in values["trials"] if isinstance(trial, dict) and "steps" not in trial]
            for trial in older:
                trial["steps"] = values.get("steps")
        return values


def record_of(study: Study, tracking_uri: str | None) -> StudyRecord:
    """The record of a study about to run."""
    trials = [
        TrialRecord(
            recipe=trial.recipe,
            shape=trial.shape,
            lr=trial.lr,
            seed=trial.seed,
            steps=trial.config.training.steps,
            run_dir=trial.config.run_dir.relative_to(study.dir),
            config=trial_config(study, trial.config.run.name).relative_to(study.dir),
        )
        for trial in study.trials
    ]
    return StudyRecord(
        name=study.name,
        source=study.path,
        recipes=study.recipes,
        shapes=study.shapes,
        learning_rates=study.learning_rates,
        seeds=study.seeds,
        budget=study.budget.model_dump(exclude_none=True) if study.budget else {},
        stopping=study.stopping.model_dump(exclude_none=True) if study.stopping else {},
        steps=study.base.training.steps,
        overrides=study.overrides,
        tracking_uri=tracking_uri,
        trials=trials,
        base=study.base.model_dump(mode="json", exclude={"tracking"}),
    )


def trial_config(study: Study, run_name: str) -> Path:
    """Where a trial's configuration is kept: outside its run folder, which a restart empties."""
    return study.dir / "configs" / f"{run_name}.yaml"


def write_record(record: StudyRecord, study_dir: Path) -> None:
    """Write study.yaml, all or nothing."""
    write_atomically(study_dir / STUDY_FILE, yaml.safe_dump(record.model_dump(mode="json"), sort_keys=False))


def read_record(study_dir: Path) -> StudyRecord:
    """Read study.yaml. Raises: DataError where there is none, or it is not what a sweep writes."""
    path = study_dir / STUDY_FILE
    if not path.exists():
        raise DataError(f"{study_dir}: holds no {STUDY_FILE}; give the folder of a study that was swept")
    try:
        return StudyRecord.model_validate(yaml.safe_load(path.read_text(encoding="utf-8")))
    except (ValueError, yaml.YAMLError) as error:
        raise DataError(f"{path}: is not a study record ({' '.join(str(error).split())[:200]})") from None
