"""`steadytrain cancel` with Slurm: what is asked of it, in which order, and what is written down."""

from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from launcher.cli import app
from launcher.jobs import cancel
from launcher.jobs.decide import decide
from launcher.jobs.job import Job, read_job
from launcher.jobs.verdict import Verdict
from tests.launcher.jobs.queues import FakeQueue, make_attempt, make_job, make_run


@pytest.fixture
def queue(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeQueue:
    monkeypatch.setattr(cancel, "SLURM_POLL_SECONDS", 0.01)
    return FakeQueue.install(tmp_path / "bin", monkeypatch)


def run(*arguments: object):
    return CliRunner().invoke(app, ["cancel", *map(str, arguments)])


def submitted(path: Path, *ids: str) -> Job:
    return make_job(make_run(path), *ids)


def cancelled(job: Job) -> bool:
    return read_job(Path(job.run_dir)).cancelled is not None


def test_a_running_job(queue, tmp_path) -> None:
    job = submitted(tmp_path / "a", "7")
    queue.shows("7 RUNNING - n0", "8 RUNNING - n1")
    result = run(job.run_dir)
    assert (result.exit_code, result.stdout) == (0, f"{job.run_dir}: cancelled job 7, which was running\n")
    assert queue.cancelled() == ["7"]
    assert cancelled(job)


def test_one_that_is_on_its_way_back_into_the_queue(queue, tmp_path) -> None:
    job = submitted(tmp_path / "a", "7")
    make_attempt(job, "7.0", ended=1, kind="stopped", again=True)
    queue.shows("7 COMPLETED 1")
    assert "which was requeued" in run(job.run_dir).stdout
    assert cancelled(job)


def test_the_last_links_of_a_chain_go_first(queue, tmp_path) -> None:
    jobs = submitted(tmp_path / "a", "5", "6", "7"), submitted(tmp_path / "b", "8", "9")
    queue.shows("5 COMPLETED 60", "6 RUNNING - n0", "7 PENDING", "8 RUNNING - n1", "9 PENDING")
    assert run(*(job.run_dir for job in jobs)).exit_code == 0
    assert queue.cancelled() == ["7 9", "6 8"]


def test_what_has_ended_is_left_as_it_is(queue, tmp_path) -> None:
    job = submitted(tmp_path / "a", "7")
    make_attempt(job, "7.0", ended=5, kind="finished")
    queue.shows("7 COMPLETED 5")
    result = run(job.run_dir)
    assert (result.exit_code, result.stdout) == (0, f"{job.run_dir}: nothing to cancel: finished\n")
    assert queue.cancelled() == []
    assert not cancelled(job)


def test_a_study_s_jobs(queue, tmp_path) -> None:
    study = tmp_path / "study"
    trials = [{"recipe": "r", "lr": 0.1, "seed": seed, "run_dir": f"trials/{seed}", "config": "c"} for seed in range(3)]
    record = {"name": "study", "source": "s.yaml", "recipes": {"r": {}}, "learning_rates": [0.1], "seeds": [0, 1, 2],
              "steps": 100, "tracking_uri": None, "trials": trials, "base": {}}  # fmt: skip
    study.mkdir()
    (study / "study.yaml").write_text(yaml.safe_dump(record))
    result = run(study)
    assert (result.exit_code, result.stderr) == (2, f"{study}: none of its trials was submitted as a job\n")
    for seed in (0, 1):
        submitted(study / "trials" / str(seed), f"7_{seed}")
    queue.shows("7_0 RUNNING - n0", "7_1 PENDING - - JobArrayTaskLimit")
    assert [line.split(": ")[1] for line in run(study).stdout.splitlines()] == [
        "cancelled job 7_0, which was running",
        "cancelled job 7_1, which was pending",
        "what compares its trials runs next, on those that ended",
    ]
    assert queue.cancelled() == ["7_0 7_1"]


def test_slurm_may_take_longer(queue, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(cancel, "SECONDS_FOR_SLURM", 1.0)
    queue.after("COMPLETING")
    job = submitted(tmp_path / "a", "7")
    queue.shows("7 RUNNING - n0")
    assert run(job.run_dir).stdout.endswith("; Slurm has not ended it within 1 s (COMPLETING)\n")
    assert cancelled(job)


def test_a_job_that_comes_back_is_cancelled_again(queue, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(cancel, "SECONDS_FOR_SLURM", 2.0)
    monkeypatch.setattr(cancel, "SECONDS_BETWEEN_REQUESTS", 0.1)
    queue.after("PENDING")
    job = submitted(tmp_path / "a", "7")
    queue.shows("7 RUNNING - n0")
    run(job.run_dir)
    assert len(queue.cancelled()) > 1


def test_a_refusal_is_told_and_leaves_the_job_as_it_was(queue, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(cancel, "SECONDS_FOR_SLURM", 0.5)
    (queue.folder / "refuses").touch()
    job = submitted(tmp_path / "a", "7")
    queue.shows("7 RUNNING - n0")
    result = run(job.run_dir)
    assert (result.exit_code, result.stderr) == (1, "scancel: Kill job error on job id 7: Access denied\n")
    assert not cancelled(job)


def test_without_squeue_nothing_is_done(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    job = submitted(tmp_path / "a", "7")
    result = run(job.run_dir)
    assert (result.exit_code, result.stderr) == (
        1, f"{job.run_dir}: there is no squeue on this machine: ask where the job was submitted\n",
    )  # fmt: skip
    assert not cancelled(job)


def test_mistakes_are_told_before_anything_is_cancelled(queue, tmp_path) -> None:
    job = submitted(tmp_path / "runs" / "a", "7")
    plain = make_run(tmp_path / "runs" / "b")
    queue.shows("7 RUNNING - n0")
    for path, message in (
        (plain, f"{plain}: was not submitted as a job (there is no job/job.json)"),
        (tmp_path / "runs", f"{tmp_path}/runs: is neither a run nor a study; name the runs that shall be cancelled"),
    ):
        result = run(job.run_dir, path)
        assert (result.exit_code, result.stderr) == (2, message + "\n")
    assert queue.cancelled() == []


@pytest.mark.parametrize("kind", ["stopped", "crashed", "unfit", "vanished"])
def test_a_cancelled_job_does_not_start_again(kind) -> None:
    job = Job(folder="", run_dir="", site="lab", kind="slurm", cancelled=1.0)
    assert not decide(job, Verdict(kind, "why"), []).again
