"""The batch script, what sbatch is called with, and what it must not hear of."""

import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from configs.errors import LaunchError
from configs.sites import Site
from launcher.jobs import executor as executors
from launcher.jobs.place import RESTART
from launcher.jobs.rank import RankJob
from tests.launcher.jobs.fake_slurm import FakeSlurm, install

GOLDEN = r"""#!/bin/bash

# Parameters
#SBATCH --account=physics
#SBATCH --chdir='/runs/it'"'"'s mine/é/job/code'
#SBATCH --constraint='[rack1|rack2]'
#SBATCH --cpus-per-task=12
#SBATCH --dependency=afterok:12
#SBATCH --error='/runs/it'"'"'s mine/é/job/logs/%j_0_log.err'
#SBATCH --exclude='n[3-5]'
#SBATCH --exclusive
#SBATCH --gpus-per-node=h100:8
#SBATCH --job-name=big
#SBATCH --mail-type=FAIL
#SBATCH --mem=1536M
#SBATCH --mincpus=96
#SBATCH --nodes=2-4
#SBATCH --open-mode=append
#SBATCH --output='/runs/it'"'"'s mine/é/job/logs/%j_0_log.out'
#SBATCH --partition=gpu
#SBATCH --qos=high
#SBATCH --requeue
#SBATCH --reservation=mine
#SBATCH --signal=USR2@120
#SBATCH --time=720

# setup
module load cuda
export NCCL_IB_TIMEOUT=22
export NOTE='it'"'"'s $HOME'
export PYTHONPATH='/runs/it'"'"'s mine/é/job/code'
export PYTHONUNBUFFERED=1
export SRUN_CPUS_PER_TASK=12

# command
export SUBMITIT_EXECUTOR=slurm
srun --unbuffered --output '/runs/it'"'"'s mine/é/job/logs/%j_%t_log.out' --error '/runs/it'"'"'s mine/é/job/logs/%j_%t_log.err' --ntasks-per-node=8 --kill-on-bad-exit=1 --cpu-bind=none apptainer exec --nv 'my image.sif' /opt/python -u -m submitit.core._submit '/runs/it'"'"'s mine/é/job/logs'


# teardown
srun_exit=$?
trap '' TERM
PYTHON -m launcher.jobs.decide /runs/job "$srun_exit"
exit $?"""  # noqa: E501


@pytest.fixture
def slurm(tmp_path, monkeypatch) -> FakeSlurm:
    return install(tmp_path / "slurm", monkeypatch)


def made(site: Site, tmp_path: Path, *, array_parallelism: int = 0) -> executors.Executor:
    decide = executors.decide_command(site, "/runs/job")
    return executors.executor(
        site, name="big", folder=tmp_path / "logs", code=tmp_path, decide=decide, array_parallelism=array_parallelism
    )


def rank_job(site: Site) -> RankJob:
    return RankJob("job", "config.yaml", site.preflight, site.grace_s)


def test_a_script_with_everything_in_it(tmp_path):
    site = Site.model_validate(
        {
            "resources": {
                "nodes": "2-4", "gpus_per_node": 8, "gpu_type": "h100", "cpus_per_task": 12, "mem_gb": 1.4999,
                "time": "12:00:00", "partition": "gpu", "account": "physics", "qos": "high", "reservation": "mine",
                "constraint": "[rack1|rack2]", "exclude": "n[3-5]", "dependency": "afterok:12",
            },
            "setup": ["module load cuda"],
            "environment": {"NCCL_IB_TIMEOUT": 22, "NOTE": "it's $HOME"},
            "container": "apptainer exec --nv 'my image.sif'",
            "python": "/opt/python",
            "srun_args": ["--cpu-bind=none"],
            "sbatch": {"exclusive": True, "overcommit": False, "mail-type": "FAIL"},
        }
    )  # fmt: skip
    written = executors.executor(
        site,
        name="big",
        folder=tmp_path,
        code=Path("/runs/it's mine/é/job/code"),
        decide=executors.decide_command(site, "/runs/job"),
    )
    written.folder = Path("/runs/it's mine/é/job/logs")
    script = written.script()
    assert script == GOLDEN.replace("PYTHON -m", f"{shlex.quote(sys.executable)} -m")
    assert subprocess.run(["bash", "-n"], input=script, text=True, check=False).returncode == 0


def test_a_script_with_nothing_asked_for(tmp_path):
    script = made(Site(requeue=False), tmp_path).script()
    directives = [line.removeprefix("#SBATCH --") for line in script.splitlines() if line.startswith("#SBATCH")]
    assert [line for line in directives if "/" not in line] == [
        "job-name=big", "no-requeue", "nodes=1", "ntasks-per-node=1", "open-mode=append", "signal=USR2@120", "time=60",
    ]  # fmt: skip


def test_the_job_s_own_python_judges_unless_it_is_inside_a_container():
    of_the_job, of_this_process = "/opt/python -m launcher", f"{shlex.quote(sys.executable)} -m launcher"
    assert executors.decide_command(Site(python="/opt/python"), "x").startswith(of_the_job)
    for contained in (
        Site(python="/opt/python", container="enroot"),
        Site(python="/opt/python", srun_args=["--container-image=i"]),
    ):
        assert executors.decide_command(contained, "x").startswith(of_this_process)


@pytest.mark.parametrize("path", ["plain", "a b", "it's", 'say "x"', "é ü", "$HOME", "a;b", "#1", "`x`", "(1)"])
def test_bash_and_sbatch_read_every_path_as_it_is(tmp_path, path):
    """In bash the words of the srun line, in sbatch those of its directives (which it reads in nearly the same way)."""
    site, folder = Site(), tmp_path / path
    script = executors.executor(site, name="a", folder=folder, code=folder, decide="true").script()
    command = next(line for line in script.splitlines() if line.startswith("srun"))
    shown = subprocess.run(
        ["bash", "-c", f"srun() {{ printf '%s\\n' \"$@\"; }}; {command}"], capture_output=True, text=True
    )
    assert shown.stdout.splitlines()[-1] == str(folder)
    chdir = next(line for line in script.splitlines() if line.startswith("#SBATCH --chdir="))
    assert shlex.split(chdir.removeprefix("#SBATCH "))[0] == f"--chdir={folder}"
    assert subprocess.run(["bash", "-n"], input=script, text=True, check=False).returncode == 0


def test_an_array_names_its_logs_by_element_and_keeps_the_job_s_python(tmp_path, slurm):
    site = Site(python="/opt/python")
    ids = executors.enqueue(made(site, tmp_path, array_parallelism=2), [rank_job(site)] * 3)
    assert ids == ["100_0", "100_1", "100_2"]
    (script,) = slurm.scripts
    assert "#SBATCH --array=0-2%2\n" in script and "/opt/python -u -m submitit.core._submit" in script
    assert f"#SBATCH --output={tmp_path}/logs/%A_%a_0_log.out\n" in script
    assert sorted(path.name for path in (tmp_path / "logs").glob("*_submitted.pkl")) == [
        f"100_{element}_submitted.pkl" for element in range(3)
    ]
    assert made(site, tmp_path, array_parallelism=2).script(3) == script


LEAKED = {
    "SLURM_JOB_ID": "7", "SLURM_NTASKS": "64", "SLURM_CPU_BIND": "quiet", "SLURM_RESTART_COUNT": "3",
    "SLURMD_NODENAME": "n7", "SBATCH_PARTITION": "debug", "SBATCH_TIMELIMIT": "1", "SRUN_DEBUG": "3",
    "SALLOC_ACCOUNT": "x", "PMI_RANK": "1", "PMIX_RANK": "1", "OMPI_COMM_WORLD_RANK": "1", "SUBMITIT_EXECUTOR": "local",
    "RANK": "1", "LOCAL_RANK": "1", "WORLD_SIZE": "8", "LOCAL_WORLD_SIZE": "8", "GROUP_RANK": "0", "ROLE_RANK": "1",
    "MASTER_ADDR": "h", "MASTER_PORT": "1", "TORCHELASTIC_RUN_ID": "x", "TORCHELASTIC_USE_AGENT_STORE": "True",
    RESTART: "2",
}  # fmt: skip
HANDED_ON = {"SLURM_CONF": "/etc/lab.conf", "SLURM_JWT": "token", "MLFLOW_TRACKING_URI": "http://h", "HOME": "/home/me"}


@pytest.mark.parametrize("way", ["queued", "array", "validated"])
def test_no_job_or_launcher_around_the_submission_reaches_the_new_job(tmp_path, slurm, monkeypatch, way):
    for name, value in (LEAKED | HANDED_ON).items():
        monkeypatch.setenv(name, value)
    before, site = dict(os.environ), Site()
    if way == "validated":
        executors.validate(made(site, tmp_path).script(), None)
    else:
        executors.enqueue(made(site, tmp_path), [rank_job(site)] * (2 if way == "array" else 1))
    heard = slurm.environment
    assert not LEAKED.keys() & heard.keys()
    assert HANDED_ON.items() <= heard.items()
    assert dict(os.environ) == before


def test_slurm_s_refusal_is_one_line(tmp_path, slurm):
    site = Site.model_validate({"resources": {"partition": "nix"}})
    words = "Slurm refuses the job: invalid partition specified: nix; Invalid partition name specified"
    with pytest.raises(LaunchError) as caught:
        executors.validate(made(site, tmp_path).script(), "nix")
    assert str(caught.value) == f"{words}; --dry-run shows what it is asked for"
    with pytest.raises(LaunchError) as caught:
        executors.enqueue(made(site, tmp_path), [rank_job(site)])
    assert str(caught.value) == words


def test_a_job_may_wait_for_nodes_that_are_down_but_not_for_nodes_there_are_none_of(tmp_path, slurm):
    script = made(Site.model_validate({"resources": {"nodes": 9}}), tmp_path).script()
    with pytest.raises(LaunchError, match=r"^Slurm refuses the job: Requested node configuration is not available;"):
        executors.validate(script, "main")
    (slurm.folder / "down").write_text("2\n")
    executors.validate(script, "main")


@pytest.mark.parametrize(
    ("stderr", "words"),
    [
        ("", "it failed without a word"),
        ("sbatch: error: Batch job submission failed: Job dependency problem\n", "Job dependency problem"),
        ("sbatch: unrecognized option '--foo'\nTry \"sbatch --help\" for more\n", "unrecognized option '--foo'"),
        ("sbatch: error: Unable to contact slurm controller (connect failure)\n",
         "Unable to contact slurm controller (connect failure)"),
    ],
)  # fmt: skip
def test_what_slurm_says_is_handed_on(stderr, words):
    assert executors.slurm_words(stderr) == words
