"""The stand-in for sacct is enough for submitit, and says what it cannot do."""

import subprocess
from pathlib import Path

import pytest
import submitit

from cluster.lab import Lab
from tests.slurm import until


def sacct(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["sacct", *arguments], capture_output=True, text=True, check=False)


def table(*arguments: str) -> list[list[str]]:
    done = sacct(*arguments, "--parsable2", "--noheader")
    assert done.returncode == 0, done.stderr
    return [line.split("|") for line in done.stdout.splitlines()]


@pytest.fixture
def executor(slurm: Lab, tmp_path: Path) -> submitit.AutoExecutor:
    executor = submitit.AutoExecutor(tmp_path / "jobs", cluster="slurm")
    executor.update_parameters(timeout_min=60, slurm_partition="low", cpus_per_task=1)
    return executor


def add(a: int, b: int) -> int:
    return a + b


def test_a_submitit_job_gives_its_result(executor: submitit.AutoExecutor) -> None:
    job = executor.submit(add, 2, 3)
    assert job.result() == 5
    until(lambda: job.get_info(mode="force")["State"] == "COMPLETED", 10, "the job is completed")
    assert job.get_info()["NodeList"] == "127.0.1.1"


def test_submitit_sees_a_cancelled_job(executor: submitit.AutoExecutor) -> None:
    import time

    job = executor.submit(time.sleep, 600)
    until(lambda: job.get_info(mode="force").get("State") == "RUNNING", 15, "the job runs")
    job.cancel(check=True)
    until(lambda: job.done(force_check=True), 15, "the job is done")
    assert job.state == "CANCELLED"


def test_array_elements_have_their_own_states(slurm: Lab) -> None:
    wrap = "--wrap=exit $SLURM_ARRAY_TASK_ID"
    job = slurm.run("sbatch", "--parsable", "--output=/dev/null", "--array=0-1", wrap).strip()
    fields = ("-j", job, "-o", "JobID,State")
    done = [[f"{job}_0", "COMPLETED"], [f"{job}_1", "FAILED"]]
    until(lambda: sorted(table(*fields)) == done, 15, "both elements have ended")
    held = slurm.run("sbatch", "--parsable", "--hold", "--output=/dev/null", "--array=3-9%2", wrap).strip()
    assert table("-j", held, "-o", "JobID,State,NodeList") == [[f"{held}_[3-9%2]", "PENDING", "None assigned"]]
    assert table("-j", f"{job}_1", "-j", f"{held},{job}_0", "-o", "JobID", "-X") != []


def test_a_name_may_hold_anything(slurm: Lab) -> None:
    job = slurm.run(
        "sbatch", "--parsable", "--hold", "--output=/dev/null", "--job-name=a b=c,%d", "--wrap=true"
    ).strip()
    assert table("-j", job, "-o", "JobName,JobID") == [["a b=c,%d", job]]


def test_an_unknown_job_is_an_empty_answer(slurm: Lab) -> None:
    assert sacct("-o", "JobID,State,NodeList", "--parsable2", "-j", "999999").stdout == "JobID|State|NodeList\n"


@pytest.mark.parametrize(
    ("arguments", "named"), [(("-o", "MaxRSS"), "maxrss"), (("--starttime=now",), "--starttime"), (("-D",), "-D")]
)
def test_what_it_cannot_do_is_refused_in_one_line(slurm: Lab, arguments: tuple[str, ...], named: str) -> None:
    refused = sacct(*arguments)
    assert refused.returncode == 2 and refused.stdout == ""
    assert named in refused.stderr and refused.stderr.count("\n") == 1
