"""submitit's Slurm executor with our batch script: the ranks under srun, then `launcher.jobs.decide`."""

import math
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stderr
from io import StringIO
from pathlib import Path
from typing import Any

import submitit

from configs.errors import LaunchError
from configs.site_rules import minutes, node_range
from configs.sites import Resources, Site
from launcher.jobs.place import RESTART

LEAKS = (
    "SLURM_", "SLURMD_", "SBATCH_", "SRUN_", "SALLOC_", "PMI_", "PMIX_", "OMPI_", "SUBMITIT_", "TORCHELASTIC_",
)  # fmt: skip
"""What variables of Slurm, MPI and torchrun begin with: some would steer sbatch, some our ranks."""
KEPT = ("SLURM_CONF", "SLURM_JWT")
"""Which Slurm, and the right to use it."""
RANK_VARIABLES = (
    "RANK", "LOCAL_RANK", "GROUP_RANK", "ROLE_RANK", "NODE_RANK", "ROLE_NAME", "WORLD_SIZE", "LOCAL_WORLD_SIZE",
    "GROUP_WORLD_SIZE", "ROLE_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", RESTART,
)  # fmt: skip
KILL_ALL = ["--kill-on-bad-exit=1"]
"""One rank's death ends the step, so that no other waits for it."""
UNAVAILABLE = "Requested node configuration is not available"
"""What `sbatch --test-only` says of a job that fits no node, and of one whose nodes are all down for now."""
_SAID_BEFORE = re.compile(r"^(?:(?:sbatch|error|allocation failure|Batch job submission failed): )+")


class Executor(submitit.SlurmExecutor):
    """As submitit's, but writes a script where there is no Slurm too, and keeps its own Python for arrays."""

    @classmethod
    def affinity(cls) -> int:
        """Usable everywhere: a script can be written without Slurm; submitting says if there is none."""
        return 1

    @classmethod
    def name(cls) -> str:
        return "slurm"

    def script(self, elements: int | None = None) -> str:
        """The batch script; of an array of so many elements, if given."""
        parameters = dict(self.parameters) | ({} if elements is None else {"map_count": elements})
        return submitit.slurm.slurm._make_sbatch_string(
            command=self._submitit_command_str, folder=self.folder, **parameters
        )


def executor(site: Site, *, name: str, folder: Path, code: Path, decide: str, array_parallelism: int = 0) -> Executor:
    """An executor whose jobs run the packages in `code` and end with the shell command `decide`.

    `decide` may use `$srun_exit`. Pickles, logs and the batch script are in `folder`.
    """
    resources, python = site.resources, site.python or sys.executable
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    prefix = f"{site.container} " if site.container else ""
    made = Executor(folder=folder, python=prefix + shlex.quote(python), max_num_timeout=1)
    sbatch: dict[str, Any] = {"chdir": str(code), "requeue" if site.requeue else "no-requeue": True}
    tasks, fixed_tasks = _tasks(resources)
    sbatch |= tasks
    if resources.reservation:
        sbatch["reservation"] = resources.reservation
    parameters: dict[str, Any] = {
        "job_name": name,
        "nodes": node_range(resources.nodes)[1],
        "ntasks_per_node": resources.tasks if fixed_tasks else None,
        "time": minutes(resources.time),
        "signal_delay_s": site.grace_s,
        "partition": resources.partition,
        "account": resources.account,
        "qos": resources.qos,
        "constraint": resources.constraint,
        "exclude": resources.exclude,
        "dependency": resources.dependency,
        "cpus_per_task": resources.cpus_per_task,
        "gpus_per_node": _gpus(resources),
        "mem": None if resources.mem_gb is None else f"{math.ceil(resources.mem_gb * 1024)}M",  # 0M would be all of it
        "srun_args": [*([] if fixed_tasks else [f"--ntasks-per-node={resources.tasks}"]), *KILL_ALL, *site.srun_args],
        "setup": [*site.setup, *_exports(site, code)],
        # A requeue sends SIGTERM: a shell that died of it would take `decide` along before it has excluded nodes.
        "teardown": ["srun_exit=$?", "trap '' TERM", decide, "exit $?"],
        "additional_parameters": sbatch | {key: value for key, value in site.sbatch.items() if value is not False},
        "array_parallelism": array_parallelism or None,
    }
    made.parameters.update({key: value for key, value in parameters.items() if value is not None}, wckey=None)
    return made


def _tasks(resources: Resources) -> tuple[dict[str, Any], bool]:
    """Directives for a range of nodes, and whether the number of processes is sbatch's to know.

    With a range and --ntasks-per-node, Slurm (22.05) computes the processes of the fewest nodes and then gives no more
    nodes than that. So it is asked for whole nodes' worth of cores, and srun starts the processes on what there is.
    """
    low, high = node_range(resources.nodes)
    if low == high:
        return {}, True
    return {"nodes": f"{low}-{high}", "mincpus": resources.tasks * (resources.cpus_per_task or 1)}, False


def enqueue(made: Executor, jobs: Sequence[Callable[[], Any]]) -> list[str]:
    """Submit one job, or several as an array; their ids. Raises LaunchError with Slurm's own words."""
    from submitit.core.utils import FailedJobError, FailedSubmissionError

    try:
        with clean_environment(), redirect_stderr(StringIO()):  # submitit prints there what its error says
            if len(jobs) == 1:
                return [made.submit(jobs[0]).job_id]
            with made.batch():
                submitted = [made.submit(job) for job in jobs]
    except (FailedJobError, FailedSubmissionError, subprocess.CalledProcessError, OSError) as error:
        raise LaunchError(f"Slurm refuses the job: {slurm_words(str(error))}") from None
    return [job.job_id for job in submitted]


def take_back(job_ids: Sequence[str]) -> None:
    """Take jobs out of the queue that were submitted a moment ago."""
    if job_ids:
        subprocess.run(["scancel", *job_ids], capture_output=True, check=False)


def decide_command(site: Site, job_dir: str) -> str:
    """The line of the batch script that judges the attempt, outside of a container: scontrol is there."""
    python = shlex.quote(sys.executable if site.in_container else site.python or sys.executable)
    return f'{python} -m launcher.jobs.decide {job_dir} "$srun_exit"'


def validate(script: str, partition: str | None) -> None:
    """Ask Slurm whether it would take the script, without queueing it. Raises LaunchError with Slurm's own words.

    A job that only waits for nodes of `partition` to come back is taken, as sbatch takes it.
    """
    with tempfile.NamedTemporaryFile("w", suffix=".sh") as file, clean_environment():
        file.write(script)
        file.flush()
        done = subprocess.run(["sbatch", "--test-only", file.name], capture_output=True, text=True, check=False)
        if done.returncode and not (UNAVAILABLE in done.stderr and _some_nodes_are_down(partition)):
            raise LaunchError(
                f"Slurm refuses the job: {slurm_words(done.stderr)}; --dry-run shows what it is asked for"
            )


def _some_nodes_are_down(partition: str | None) -> bool:
    command = ["sinfo", "--noheader", "--format=%D", "--states=down,drained,draining,fail,maint,reboot"]
    command += [f"--partition={partition}"] if partition else []
    return bool(subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip())


def slurm_words(stderr: str) -> str:
    """What a Slurm command complained of on one line, without its own name."""
    words = (_SAID_BEFORE.sub("", line.strip()) for line in stderr.strip().splitlines() if "--help" not in line)
    return "; ".join(dict.fromkeys(word for word in words if word)) or "it failed without a word"


def require_slurm() -> None:
    """Raise LaunchError where there is no sbatch."""
    if shutil.which("sbatch") is None:
        raise LaunchError(
            "there is no sbatch on this machine: submit from a login node, use --dry-run to see the script, "
            "--cluster local to run here, or `python -m cluster start` for a Slurm of your own"
        )


@contextmanager
def clean_environment() -> Iterator[None]:
    """Without the variables of a job or launcher around this process: sbatch would obey them before the script."""
    before = dict(os.environ)
    for name in list(os.environ):
        if (name.startswith(LEAKS) and name not in KEPT) or name in RANK_VARIABLES:
            del os.environ[name]
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


def _exports(site: Site, code: Path) -> list[str]:
    resources: Resources = site.resources
    variables = {
        **site.environment,
        "PYTHONPATH": str(code),
        "PYTHONUNBUFFERED": "1",
        # sbatch does not hand this on to srun since Slurm 22.05.
        **({"SRUN_CPUS_PER_TASK": str(resources.cpus_per_task)} if resources.cpus_per_task else {}),
    }
    return [f"export {name}={shlex.quote(value)}" for name, value in variables.items()]


def _gpus(resources: Resources) -> str | int | None:
    """`8`, or `h100:8` where the kind matters."""
    if not resources.gpus_per_node or resources.gpu_type is None:
        return resources.gpus_per_node or None
    return f"{resources.gpu_type}:{resources.gpus_per_node}"
