"""`steadytrain submit`: from a configuration to a queued job."""

import os
import shlex
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from configs.checks import resolve
from configs.errors import ConfigError, LaunchError
from configs.schema import Config
from launcher.jobs import executor as executors
from launcher.jobs.job import JOB, RECORD, SNAPSHOT, SUBMITIT, Job, new_job, private_folder, read_job
from launcher.jobs.queue import is_alive
from launcher.jobs.rank import RankJob
from launcher.jobs.request import Request
from launcher.jobs.snapshot import discard, take_code, take_config, with_absolute_paths
from launcher.run_folder import alone, claim


@dataclass(frozen=True)
class Submitted:
    """A queued job."""

    job: Job
    continued_from: str | None
    """The checkpoint that it will go on from."""


def dry_run(request: Request) -> str:
    """The batch script as it would be submitted; nothing is written. `validate` asks Slurm what it thinks of it."""
    if request.site.kind == "local":
        raise ConfigError("--dry-run: --cluster local has no batch script; it starts the processes on this machine")
    return _script(request, with_absolute_paths(request.config))


def validate(request: Request, script: str) -> None:
    """Raise LaunchError if Slurm would refuse the script; without Slurm on this machine, nothing is known."""
    if shutil.which("sbatch"):
        executors.validate(script, request.site.resources.partition)


def _script(request: Request, config: Config) -> str:
    """The batch script; nothing is written where the run will be."""
    job_dir = config.run_dir / JOB
    with tempfile.TemporaryDirectory() as folder:  # submitit insists on making its folder
        made = _executor(request, config.run.name, job_dir, folder=Path(folder))
        made.folder = job_dir / SUBMITIT
        return made.script()


def submit(
    request: Request, *, overwrite: bool = False, fresh: bool = False, chain: int = 1, retries: int | None = None
) -> Submitted:
    """Put a run into the queue, as `chain` jobs of which each goes on where the one before stopped.

    Raises ConfigError (a run that cannot be continued, one that is queued already, a folder that cannot be written),
    LaunchError (Slurm refuses); then nothing of the job is left, neither in the run's folder nor in the queue.
    """
    config, site = with_absolute_paths(request.config), request.site
    if chain > 1 and site.kind == "local":
        raise ConfigError(f"--chain = {chain}: must be 1 with --cluster local: without a time limit one job is enough")
    if site.kind == "slurm":
        executors.require_slurm()
    _require_own(config)
    _require_not_queued(config)
    if site.kind == "slurm":  # asked before anything is written or, by --overwrite, deleted
        executors.validate(_script(request, config), site.resources.partition)
    with _no_job_without_queue(config.run_dir, logs=site.kind == "local"):
        with alone(config):
            claim(resolve(config, request.world_sizes[-1]), overwrite=overwrite, fresh=fresh)
        job = _submit(request, config, chain, retries)
    return Submitted(job, _newest_checkpoint(config))


def _submit(request: Request, config: Config, chain: int, retries: int | None) -> Job:
    site, job_dir = request.site, private_folder(config.run_dir / JOB)
    discard(job_dir / SNAPSHOT)
    snapshot = job_dir / SNAPSHOT / time.strftime("%Y%m%d-%H%M%S")
    code, config_path = take_code(snapshot), take_config(snapshot, request.config)
    job = new_job(
        job_dir, config.run_dir, request.site_name, site, job_dir / SUBMITIT,
        requeue=site.requeue and chain == 1, retries=site.retries if retries is None else retries,
    )  # fmt: skip
    rank_job = RankJob(str(job_dir), str(config_path), site.preflight, site.grace_s)
    if site.kind == "local":
        from launcher.jobs.local import start

        with executors.clean_environment():
            job = replace(job, ids=[start(job, rank_job, site, code)])
        job.write()
        return job
    with _queued(_executor(request, config.run.name, job_dir, code=code), rank_job, chain) as ids:
        job = replace(job, ids=ids)
        job.write()
    return job


@contextmanager
def _no_job_without_queue(run_dir: Path, *, logs: bool) -> Iterator[None]:
    """Take away the job's files, and a run's folder made for it, where the job could not be queued.

    `logs`: what a LaunchError points to is kept.
    """
    job_dir, record = run_dir / JOB, run_dir / JOB / RECORD
    made = next((folder for folder in (run_dir, job_dir) if not folder.exists()), job_dir / SNAPSHOT)
    before = record.read_text("utf-8") if record.is_file() else None
    try:
        yield
    except (LaunchError, OSError) as error:
        if logs and isinstance(error, LaunchError):
            raise
        shutil.rmtree(made, ignore_errors=True)
        if before is not None and job_dir.is_dir():
            record.write_text(before, encoding="utf-8")
        if isinstance(error, OSError):
            raise ConfigError(f"{error.filename or run_dir}: cannot be written: {error.strerror}") from None
        raise


@contextmanager
def _queued(made: executors.Executor, rank_job: RankJob, chain: int) -> Iterator[list[str]]:
    """The ids of the job, or of the links of a chain, each waiting for the one before; out of the queue at an error."""
    ids: list[str] = []
    try:
        for _ in range(chain):
            if ids:
                made.parameters["dependency"] = f"afterany:{ids[-1]}"
            ids += executors.enqueue(made, [rank_job])
        yield ids
    except (LaunchError, OSError):
        executors.take_back(ids)
        raise


def _executor(
    request: Request, name: str, job_dir: Path, *, code: Path | None = None, folder: Path | None = None
) -> executors.Executor:
    return executors.executor(
        request.site,
        name=name.replace("/", "."),
        folder=folder or job_dir / SUBMITIT,
        code=code or job_dir / SNAPSHOT / "code",
        decide=executors.decide_command(request.site, shlex.quote(str(job_dir))),
    )


def _require_own(config: Config) -> None:
    """The pickles in a job's folder are executed: it must be nobody else's."""
    folder = next((folder for folder in (config.run_dir / JOB, config.run_dir) if folder.exists()), None)
    if folder is not None and folder.stat().st_uid != os.getuid():
        raise ConfigError(f"{folder}: belongs to another user; choose another run.name or run.dir")


def _require_not_queued(config: Config) -> None:
    if not (config.run_dir / JOB / RECORD).is_file():
        return
    job = read_job(config.run_dir)
    waiting = [job_id for job_id in job.ids if is_alive(job, job_id)]
    if waiting:
        raise ConfigError(
            f"{config.run_dir}: job {', '.join(waiting)} is queued or running for this run; "
            "`steadytrain cancel` ends it, or choose another run.name"
        )


def _newest_checkpoint(config: Config) -> str | None:
    from training.checkpoint import store

    steps = store.steps(config.run_dir / store.FOLDER)
    return steps[0].name if steps else None
