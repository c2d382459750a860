"""A job as its folder describes it: `<run folder>/job/`, readable by its owner only, since submitit runs pickles there.

job.json            this record
snapshot/code/      the packages as they were when it was submitted
snapshot/config.yaml
submitit/           batch script, pickles and logs
attempts/           what each attempt left (`launcher.jobs.attempt`)
"""

import json
import os
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from configs.atomic import write_atomically
from configs.errors import ConfigError
from configs.sites import Site

JOB, RECORD, SNAPSHOT, SUBMITIT = "job", "job.json", "snapshot", "submitit"


@dataclass(frozen=True)
class Job:
    """How a run was submitted. `ids`: as Slurm has them, in the order in which they run (a chain has several)."""

    folder: str
    run_dir: str
    site: str
    kind: str
    ids: list[str] = field(default_factory=list)
    submitted: float = 0.0
    requeue: bool = True
    retries: int = 3
    resources: dict[str, Any] = field(default_factory=dict)
    log_folder: str = ""
    """Where `<id>_<rank>_log.out` and `.err` are."""
    cancelled: float | None = None

    @property
    def path(self) -> Path:
        return Path(self.folder)

    def write(self) -> None:
        """Replace the record. Raises OSError."""
        write_atomically(self.path / RECORD, json.dumps(asdict(self), indent=2))


def new_job(folder: Path, run_dir: Path, site_name: str, site: Site, logs: Path, *, requeue: bool, retries: int) -> Job:
    """The record of a job that is about to be queued, written: it is read when the job ends. Raises OSError."""
    job = Job(
        folder=str(folder),
        run_dir=str(run_dir),
        site=site_name,
        kind=site.kind,
        submitted=time.time(),
        requeue=requeue,
        retries=retries,
        resources=site.resources.model_dump(mode="json"),
        log_folder=str(logs),
    )
    job.write()
    return job


def private_folder(folder: Path) -> Path:
    """Make a folder that only its owner may read or write. Raises ConfigError if it is another user's."""
    folder.mkdir(parents=True, exist_ok=True)
    if folder.stat().st_uid != os.getuid():
        raise ConfigError(f"{folder}: belongs to another user; choose another run.name or run.dir")
    folder.chmod(0o700)
    return folder


def read_job(run_dir: Path) -> Job:
    """The job of a run. Raises ConfigError if it was not submitted as one."""
    path = run_dir / JOB / RECORD
    try:
        return Job(**json.loads(path.read_text("utf-8")))
    except FileNotFoundError:
        raise ConfigError(f"{run_dir}: was not submitted as a job (there is no {JOB}/{RECORD})") from None
    except (OSError, ValueError, TypeError) as error:
        raise ConfigError(f"{path}: is no record of a job: {str(error).splitlines()[0]}") from None
