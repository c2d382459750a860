"""The runs in a folder: a run, the trials of a study, or runs and studies below it."""

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from comparison.record import STUDY_FILE, read_record
from configs.errors import ConfigError
from launcher.jobs.job import JOB, RECORD
from launcher.run_folder import CONFIG

NO_RUNS = ("mlflow-artifacts", "mlruns")
"""Folders that hold copies of runs' files."""


@dataclass(frozen=True)
class FoundRun:
    """A run's folder, which a study's trial may not have yet. `name`: its path below what was asked for."""

    path: Path
    name: str
    study: Path | None = None


def find_runs(paths: Sequence[Path]) -> list[FoundRun]:
    """The runs of all `paths`, each once.

    Raises ConfigError for a path that is no folder or holds no run, DataError for a damaged study.
    """
    found: dict[Path, FoundRun] = {}
    for path in paths:
        if not path.is_dir():
            raise ConfigError(f"{path}: no such folder; give the folder of a run, of a study, or of several runs")
        below = list(_below(path))
        if not below:
            raise ConfigError(f"{path}: holds no run and no study")
        for run in below:
            found.setdefault(run.path.resolve(), run)
    return list(found.values())


def _below(path: Path) -> Iterator[FoundRun]:
    if _is_run(path):
        yield FoundRun(path, str(path))
        return
    for folder, subfolders, files in os.walk(path):
        here = Path(folder)
        if STUDY_FILE in files:
            subfolders.clear()
            yield from _trials(here, path)
        elif here != path and _is_run(here):
            subfolders.clear()
            yield FoundRun(here, str(here.relative_to(path)))
        else:
            subfolders[:] = sorted(name for name in subfolders if not name.startswith(".") and name not in NO_RUNS)


def _trials(study: Path, above: Path) -> Iterator[FoundRun]:
    for trial in read_record(study).trials:
        name = trial.run_dir.relative_to("trials") if trial.run_dir.parts[0] == "trials" else trial.run_dir
        yield FoundRun(study / trial.run_dir, str(study.relative_to(above) / name), study)


def _is_run(folder: Path) -> bool:
    return (folder / CONFIG).is_file() or (folder / JOB / RECORD).is_file()
