"""`steadytrain sweep --cluster`: the trials of a study as one array of jobs, and a last job that compares them.

Each trial is a run of its own, preempted, resumed and retried like any other; `<study>/job/` holds what they share:

    snapshot/code/      the packages, once for all trials
    submitit/           batch script, pickles and logs: `<array id>_<trial>_<rank>_log.out`
    trials.txt          the job folder of each element of the array, a line each
"""

import shlex
import signal
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from comparison.record import FAILURE
from comparison.selection import ALL, Selection
from comparison.study import Study, Trial, load_study
from comparison.sweep import alone, conclude, open_study_run
from comparison.trials import prepare, unfinished
from configs.checks import Impossible, resolve
from configs.errors import ConfigError, LaunchError
from configs.load import load
from configs.sites import Resources, Site, load_site
from launcher.jobs import executor as executors
from launcher.jobs.job import JOB, RECORD, SNAPSHOT, SUBMITIT, Job, new_job, private_folder
from launcher.jobs.rank import RankJob
from launcher.jobs.request import check_fit, on_its_devices
from launcher.jobs.snapshot import take_code, take_config
from launcher.jobs.standing import ask_queue, job_of, standing

TRIALS = "trials.txt"


@dataclass(frozen=True)
class Swept:
    """What was queued: `ids` of the trials' jobs, the id of the comparing job; `kept` trials had a result already."""

    study_dir: Path
    ids: list[str]
    compare_id: str | None
    kept: int
    under_way: int
    unwatched: bool
    """The study says when to stop hopeless trials, which takes a sweep that looks on: here all run to their end."""


@dataclass(frozen=True)
class CompareJob:
    """The last job of a study, pickled by submitit: report and MLflow's numbers from what has results."""

    study_dir: str
    name: str
    config: str

    def __call__(self) -> str:
        """Write the report; the study's MLflow run ends with it."""
        signal.signal(signal.SIGUSR2, signal.SIG_IGN)  # before a preemption; submitit would fail it, Slurm requeues it
        config, study_dir = load(self.config), Path(self.study_dir)
        tracker = open_study_run(config, self.name, study_dir)
        try:
            conclude(study_dir, config.training.steps, tracker)
        except BaseException:
            tracker.close("failed")
            raise
        tracker.close("finished")
        return str(study_dir)


def sweep(
    path: Path,
    overrides: Sequence[str],
    cluster: str,
    options: Mapping[str, Any],
    *,
    at_once: int | None,
    only: Selection = ALL,
) -> Swept:
    """Queue the trials that have no result and are not queued yet, `at_once` at a time, and the comparison after them.

    `only`: the part of the study to queue now.

    Raises ConfigError, DataError (study, site, a trial that does not fit it), LaunchError (no Slurm, or it refuses);
    then no trial is queued.
    """
    site = load_site(cluster, options)
    study = load_study(path, [*overrides, f"run.dir={_absolute_runs(path, overrides)}"])
    asked, unwatched = only.of(study), study.stopping is not None
    _check_layouts(site, study)
    executors.require_slurm()
    executors.validate(_script(study, site, at_once), site.resources.partition)
    _make_folder(study)
    with alone(study):
        without_result = unfinished(study, asked)
        alive = _under_way(without_result)
        pending = [trial for trial in without_result if trial.config.run_dir not in alive]
        kept, under_way = len(asked) - len(without_result), len(alive)
        if not pending:
            return Swept(study.dir, [], None, kept, under_way, unwatched)
        # Not closed: the study's MLflow run goes on until the comparing job ends it.
        tracker = open_study_run(study.base, study.name, study.dir)
        try:
            ids, compare_id = _queue(study, prepare(study, pending, tracker), cluster, site, at_once)
        except BaseException:
            tracker.close("failed")
            raise
    return Swept(study.dir, ids, compare_id, kept, under_way, unwatched)


def _make_folder(study: Study) -> None:
    try:
        study.dir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"run.dir = {study.base.run.dir}: cannot write {study.dir}: {error.strerror}") from None


def _script(study: Study, site: Site, at_once: int | None) -> str:
    """The batch script of the whole study; nothing is written where it will be."""
    logs = study.dir / JOB / SUBMITIT
    with tempfile.TemporaryDirectory() as folder:  # submitit insists on making its folder
        made = executors.executor(
            site, name=study.name, folder=Path(folder), code=study.dir / JOB, decide="true",
            array_parallelism=at_once or 0,
        )  # fmt: skip
        made.folder = logs
        return made.script(elements=len(study.trials))


def _queue(
    study: Study, pending: Sequence[Trial], cluster: str, site: Site, at_once: int | None
) -> tuple[list[str], str]:
    job_dir = private_folder(study.dir / JOB)
    snapshot = job_dir / SNAPSHOT / time.strftime("%Y%m%d-%H%M%S")
    code, logs = take_code(snapshot), job_dir / SUBMITIT
    jobs = [_job(trial, cluster, site, logs) for trial in pending]
    index = snapshot / TRIALS
    index.write_text("".join(f"{job.folder}\n" for job in jobs), encoding="utf-8")
    rank_jobs = [_rank_job(job, trial, site) for job, trial in zip(jobs, pending, strict=True)]
    element = f'"$(sed -n "$((${{SLURM_ARRAY_TASK_ID:-0}} + 1))p" {shlex.quote(str(index))})"'
    made = executors.executor(
        site, name=study.name, folder=logs, code=code, decide=executors.decide_command(site, element),
        array_parallelism=at_once or 0,
    )  # fmt: skip
    comparing = CompareJob(str(study.dir), study.name, str(take_config(snapshot, study.base)))
    ids: list[str] = []
    try:
        ids = executors.enqueue(made, rank_jobs)
        for job, job_id in zip(jobs, ids, strict=True):
            replace(job, ids=[job_id]).write()
        return ids, executors.enqueue(_comparer(site, study, logs, code, ids), [comparing])[0]
    except (LaunchError, OSError):
        executors.take_back(list({job_id.split("_")[0] for job_id in ids}))
        for job in jobs:  # not queued: as if it never had been
            (job.path / RECORD).unlink(missing_ok=True)
        raise


def _rank_job(job: Job, trial: Trial, site: Site) -> RankJob:
    config = take_config(Path(job.folder) / SNAPSHOT, on_its_devices(site, trial.config))
    return RankJob(job.folder, str(config), site.preflight, site.grace_s)


def _comparer(site: Site, study: Study, logs: Path, code: Path, ids: Sequence[str]) -> executors.Executor:
    """One process, after all trials have ended for good, whatever their end."""
    array = ids[0].split("_")[0]
    resources = site.resources.model_dump() | {
        "nodes": "1", "tasks_per_node": 1, "gpus_per_node": 0, "time": "30", "dependency": f"afterany:{array}",
    }  # fmt: skip
    alone_site = site.model_copy(update={"resources": Resources.model_validate(resources)})
    return executors.executor(
        alone_site, name=f"{study.name}.compare", folder=logs, code=code, decide="exit $srun_exit"
    )


def _job(trial: Trial, cluster: str, site: Site, logs: Path) -> Job:
    """The record of one trial's job, written before it can start."""
    folder = private_folder(trial.config.run_dir / JOB)
    (trial.config.run_dir / FAILURE).unlink(missing_ok=True)  # of an earlier sweep
    return new_job(folder, trial.config.run_dir, cluster, site, logs, requeue=site.requeue, retries=site.retries)


def _under_way(trials: Sequence[Trial]) -> set[Path]:
    """The run folders of trials that are queued or running already: one squeue for all. Raises LaunchError."""
    jobs = {trial.config.run_dir: job_of(trial.config.run_dir) for trial in trials}
    queue = ask_queue(jobs.values())
    if queue.silent is not None:
        raise LaunchError(queue.silent)
    return {run_dir for run_dir, job in jobs.items() if job is not None and standing(run_dir, job, queue).alive}


def _check_layouts(site: Site, study: Study) -> None:
    if site.kind != "slurm":
        raise ConfigError("--cluster local: a sweep on this machine takes no --cluster")
    for world_size in site.resources.world_sizes:
        for trial in study.trials:
            try:
                resolve(trial.config, world_size)
            except Impossible as error:
                line = error.problems[0].line()
                raise ConfigError(f"{study.path}: {trial.label}: {line} (on {world_size} processes)") from None
    for trial in study.trials:
        check_fit(site, trial.config)


def _absolute_runs(path: Path, overrides: Sequence[str]) -> Path:
    """Jobs have another working folder."""
    return load_study(path, overrides).base.run.dir.absolute()
