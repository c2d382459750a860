"""`steadytrain status`: the state of a run from all that is known, the table, the JSON."""

import fcntl
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from launcher.cli import app
from launcher.jobs.standing import ask_queue, standing
from launcher.jobs.status import duration
from monitoring.recorder import append_event
from tests.launcher.jobs.queues import FakeQueue, make_attempt, make_job, make_run

ROOT = Path(__file__).parents[3]


@pytest.fixture
def queue(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeQueue:
    return FakeQueue.install(tmp_path / "bin", monkeypatch)


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    return make_run(tmp_path / "runs" / "a")


def run(*arguments: object):
    return CliRunner().invoke(app, ["status", *map(str, arguments)])


def preflight(attempt: Path, line: str) -> None:
    (attempt / "preflight.json").write_text(json.dumps({"unfit": [], "reason": "", "lines": [line], "nodes": []}))


def records(*arguments: object) -> list[dict]:
    result = run(*arguments, "--json")
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def nothing(job) -> None: ...


def running(job) -> None:
    make_attempt(job, "7.0")


def to_start_again(job, *, seconds_ago: float = 1) -> None:
    make_attempt(job, "7.0", ended=seconds_ago, kind="stopped", again=True, how="stopped")


def given_up(job) -> None:
    make_attempt(job, "7.0", ended=40, kind="crashed", reason="rank 1 on n1 failed at step 3: ValueError: x; given up")


STANDINGS: list[tuple[str, str, Callable, str, str]] = [
    ("waits for nodes", "7 PENDING - - Resources", nothing, "pending", "Resources"),
    ("waits again", "7 PENDING - - BeginTime", to_start_again, "requeued", "BeginTime"),
    ("runs", "7 RUNNING - n[0-1]", running, "running", "n[0-1]"),
    ("its nodes are being cleaned", "7 COMPLETING - n[0-1]", running, "ending", "n[0-1]"),
    ("nodes boot", "7 CONFIGURING - n[0-1]", nothing, "starting", "n[0-1]"),
    ("suspended", "7 SUSPENDED - n[0-1]", running, "suspended", "n[0-1]"),
    ("completed while it is requeued", "7 COMPLETED 1", to_start_again, "requeued", "COMPLETED in passing"),
    ("failed while it is requeued", "7 FAILED 1", to_start_again, "requeued", "FAILED in passing"),
    ("a node failed just now", "7 NODE_FAIL 2", running, "requeued", "NODE_FAIL in passing"),
    ("preempted just now", "7 PREEMPTED 2", running, "requeued", "PREEMPTED in passing"),
    ("a node failed and Slurm did not requeue", "7 NODE_FAIL 600", running, "lost",
     "ended from outside without warning, as by the loss of a node (Slurm: NODE_FAIL)"),
    ("preempted for good", "7 PREEMPTED 600", running, "lost",
     "ended from outside without warning, as by the loss of a node (Slurm: PREEMPTED)"),
    ("its requeue did not come", "7 COMPLETED 600", lambda job: to_start_again(job, seconds_ago=600), "lost",
     "why; was to start again and did not"),
    ("time limit without a save", "7 TIMEOUT 5", running, "lost",
     "Slurm's time limit came before it was saved: the site's grace_s is too short"),
    ("plain scancel", "7 CANCELLED 5", running, "cancelled", "by scancel or an administrator"),
    ("plain scancel before it began", "7 CANCELLED 5", nothing, "cancelled", "by scancel or an administrator"),
    ("given up", "7 FAILED 40", given_up, "crashed", "rank 1 on n1 failed at step 3: ValueError: x; given up"),
    ("given up and forgotten", "", given_up, "crashed", "rank 1 on n1 failed at step 3: ValueError: x; given up"),
    ("its batch script failed", "7 FAILED 5", nothing, "crashed", "no process of it began (Slurm: FAILED)"),
    ("forgotten, nobody judged it", "", running, "lost",
     "ended from outside without warning, as by the loss of a node, and Slurm does not know the job any more"),
    ("forgotten before it began", "", nothing, "lost",
     "Slurm does not know the job any more, and no process of it ever began"),
    ("finished", "7 COMPLETED 5", lambda job: make_attempt(job, "7.0", ended=5, kind="finished"), "finished", ""),
    ("diverged, forgotten", "", lambda job: make_attempt(job, "7.0", ended=5, kind="diverged"), "diverged", ""),
    ("refused", "7 FAILED 5", lambda job: make_attempt(job, "7.0", ended=5, kind="refused", reason="no data"),
     "refused", "no data"),
    ("unfit nodes, given up", "", lambda job: make_attempt(job, "7.0", ended=5, kind="unfit", reason="n1: unfit"),
     "crashed", "n1: unfit"),
    ("only an earlier submission tried", "7 PENDING - - Priority",
     lambda job: make_attempt(job, "6.0", ended=5, kind="finished"), "pending", "Priority"),
    ("another job's line", "70 RUNNING - n9", nothing, "lost",
     "Slurm does not know the job any more, and no process of it ever began"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "line", "past", "state", "detail"), STANDINGS, ids=[row[0] for row in STANDINGS])
def test_where_a_job_stands(queue, run_dir, name, line, past, state, detail) -> None:
    queue.shows(*filter(None, [line]))
    job = make_job(run_dir, "7")
    past(job)
    where = standing(run_dir, job, ask_queue([job]))
    assert (where.state, where.detail) == (state, detail)
    assert where.alive == (state in ("pending", "requeued", "running", "ending", "starting", "suspended"))


def test_a_chain_stands_where_its_running_link_does(queue, run_dir) -> None:
    job = make_job(run_dir, "7", "8", "9", requeue=False)
    make_attempt(job, "7.0", ended=60, kind="stopped", how="stopped")
    queue.shows("9 PENDING - - Dependency", "8 RUNNING - n0", "7 COMPLETED 60")
    assert standing(run_dir, job, ask_queue([job])).detail == "n0, link 2 of 3"
    queue.shows("9 PENDING - - Dependency", "8 PENDING - - Priority", "7 COMPLETED 60")
    where = standing(run_dir, job, ask_queue([job]))
    assert (where.state, where.detail) == ("pending", "Priority, link 2 of 3")
    queue.shows()
    assert standing(run_dir, job, ask_queue([job])).state == "stopped"


def test_an_array_s_element_is_not_its_neighbour(queue, run_dir) -> None:
    queue.shows("7_1 RUNNING - n0", "7_10 PENDING - - Resources")
    job = make_job(run_dir, "7_10")
    assert standing(run_dir, job, ask_queue([job])).state == "pending"


def test_a_cancelled_job_is_that_whatever_slurm_says(queue, run_dir) -> None:
    job = make_job(run_dir, "7", cancelled=1.0)
    to_start_again(job)
    for line in ("7 COMPLETED 1", "7 FAILED 1", "7 CANCELLED 1"):
        queue.shows(line)
        assert standing(run_dir, job, ask_queue([job])).state == "cancelled"
    queue.shows("7 COMPLETING - n0")
    where = standing(run_dir, job, ask_queue([job]))
    assert (where.state, where.alive) == ("cancelled", True)


def test_without_squeue_only_an_end_for_good_is_known(tmp_path, run_dir, monkeypatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    for past, state in ((running, "unknown"), (to_start_again, "unknown"), (given_up, "crashed")):
        job = make_job(run_dir, "7")
        past(job)
        where = standing(run_dir, job, ask_queue([job]))
        assert where.state == state
        if state == "unknown":
            assert where.detail == "there is no squeue on this machine: ask where the job was submitted"
        subprocess.run(["/bin/rm", "-r", str(job.path / "attempts")], check=True)


def test_a_squeue_that_fails_says_why(queue, run_dir) -> None:
    (queue.folder / "squeue").write_text(
        "#!/bin/sh\necho 'squeue: error: slurm_load_jobs error: Unable to contact slurm controller' >&2\nexit 1\n"
    )
    job = make_job(run_dir, "7")
    detail = "slurm_load_jobs error: Unable to contact slurm controller"
    assert standing(run_dir, job, ask_queue([job])).detail == f"squeue: {detail}"


def test_one_question_for_all_runs_and_none_for_runs_that_are_no_jobs(queue, tmp_path) -> None:
    make_run(tmp_path / "runs" / "plain")
    assert [record["state"] for record in records(tmp_path / "runs")] == ["unfinished"]
    assert queue.asked() == 0
    for number in range(5):
        make_job(make_run(tmp_path / "runs" / f"r{number}"), str(number))
    queue.shows("3 RUNNING - n0")
    assert [record["state"] for record in records(tmp_path / "runs")][1:] == ["lost", "lost", "lost", "running", "lost"]
    assert queue.asked() == 1


def test_the_fields(queue, tmp_path) -> None:
    run_dir = make_run(tmp_path / "runs" / "a", steps=100, trained=40)
    job = make_job(run_dir, "7")
    append_event(run_dir, 20, "checkpoint", "step-00000020 written in 0.1 s")
    make_attempt(job, "7.0", began=300, ended=200, kind="stopped", again=True, step=20, how="stopped")
    folder = make_attempt(job, "7.1", began=100)
    preflight(folder, "node n0: good")
    append_event(run_dir, 20, "resume", "continued from step-00000020")
    append_event(run_dir, 40, "checkpoint", "step-00000040 written in 0.1 s")
    queue.shows("7 RUNNING - n[0-1]")
    (record,) = records(run_dir)
    expected = {
        "state": "running", "detail": "n[0-1]", "alive": True, "site": "lab", "job_ids": ["7"], "attempts": 2,
        "step": 40, "steps": 100, "loss": 3.25, "tokens_per_s": 500.0, "eta_s": 120.0, "study": None, "advice": None,
    }  # fmt: skip
    assert {key: record[key] for key in expected} == expected
    assert (record["last_event"]["kind"], record["last_event"]["step"]) == ("resume", 20)
    first, second = record["attempt_list"]
    assert [first[key] for key in ("number", "name", "nodes", "first_step", "last_step", "verdict")] == [
        1, "7.0", ["n0", "n1"], 1, 20, "stopped",
    ]  # fmt: skip
    assert [second[key] for key in ("number", "ended", "first_step", "last_step", "verdict", "preflight")] == [
        2, None, 21, 40, None, ["node n0: good"],
    ]  # fmt: skip


def test_the_table_fits_100_columns_and_keeps_its_numbers(queue, tmp_path) -> None:
    for name in ("short", "a-name-that-is-much-longer-than-others"):
        run_dir = make_run(tmp_path / "runs" / name, steps=1_000_000, trained=123_456)
        job = make_job(run_dir, "7")
        make_attempt(job, "7.0", ended=100, kind="crashed", again=True, reason="rank 1 on n1 failed: " + "long " * 60)
    queue.shows("7 RUNNING - n[0-1]")
    result = run(tmp_path / "runs")
    assert result.exit_code == 0
    assert max(map(len, result.stdout.splitlines())) <= 100
    assert len(result.stdout.splitlines()) == 4
    assert all("123,456/1,000,000" in line and "20 d" in line for line in result.stdout.splitlines()[2:])


def test_a_single_run_shows_its_attempts_whole(queue, run_dir) -> None:
    queue.shows("7 FAILED 40")
    job = make_job(run_dir, "7")
    folder = make_attempt(job, "7.0", ended=90, kind="crashed", again=True, reason="[gloo] " + "word " * 40 + "end")
    preflight(folder, "node old: good")
    folder = make_attempt(job, "7.1", began=80, ended=40, kind="crashed", reason="given up", step=3)
    preflight(folder, "node n0: good")
    result = run(run_dir)
    text = " ".join(result.stdout.split())
    assert max(map(len, result.stdout.splitlines())) <= 100
    assert "…" not in text and "[gloo] word" in text  # whole, and no markup
    assert re.search(r" 2 n0, n1 \S+ \S+ 40 s 1-3 crashed: given up node n0: good", text)
    assert "node old" not in text
    advice = (
        f"crashed: `steadytrain logs {run_dir}` shows why; submit it again and it begins again: it has no checkpoint"
    )
    assert advice.replace(" ", "") in text.replace(" ", "")


def test_a_damaged_run_leaves_the_others(queue, tmp_path) -> None:
    make_run(tmp_path / "runs" / "good", trained=5)
    bad = make_run(tmp_path / "runs" / "bad")
    (bad / "metrics.jsonl").write_text("torn\n")
    worse = make_run(tmp_path / "runs" / "worse")
    (worse / "job").mkdir()
    (worse / "job" / "job.json").write_text("[]")
    found = {record["name"]: record for record in records(tmp_path / "runs")}
    assert found["good"]["state"] == "unfinished"
    assert (found["bad"]["state"], found["worse"]["state"]) == ("unreadable", "unreadable")
    assert found["bad"]["detail"].startswith(f"{bad}/metrics.jsonl: damaged")


def test_a_run_of_this_machine_is_running_while_its_lock_is_held(run_dir) -> None:
    lock = run_dir.with_name(".a.lock")
    with lock.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        assert records(run_dir)[0]["state"] == "running"
    assert records(run_dir)[0]["state"] == "unfinished"
    (run_dir / "summary.json").write_text('{"status": "diverged"}')
    assert records(run_dir)[0]["state"] == "diverged"


def test_the_speed_of_an_earlier_attempt_is_not_shown(queue, tmp_path) -> None:
    run_dir = make_run(tmp_path / "runs" / "a", steps=100, trained=40)
    job = make_job(run_dir, "7")
    make_attempt(job, "7.0", began=300, ended=200, kind="stopped", again=True)
    make_attempt(job, "7.1", began=10)
    queue.shows("7 RUNNING - n0")
    os.utime(run_dir / "metrics.jsonl", (time.time() - 250,) * 2)
    (record,) = records(run_dir)
    assert (record["state"], record["step"], record["tokens_per_s"], record["eta_s"]) == ("running", 40, None, None)


@pytest.fixture
def study(tmp_path: Path) -> Path:
    """Three trials: one finished, one failed, one not begun."""
    folder = tmp_path / "runs" / "study"
    trials = [
        {"recipe": "r", "lr": 0.1, "seed": seed, "run_dir": f"trials/r/lr-1e-01/seed-{seed}", "config": "c"}
        for seed in range(3)
    ]
    finished, failed = (make_run(folder / trial["run_dir"], trained=100) for trial in trials[:2])
    (finished / "summary.json").write_text('{"status": "finished"}')
    (failed / "failure.json").write_text('{"exit_code": 1, "reason": "ValueError: x", "log": "l"}')
    record = {"name": "study", "source": "s.yaml", "recipes": {"r": {}}, "learning_rates": [0.1], "seeds": [0, 1, 2],
              "steps": 100, "tracking_uri": None, "trials": trials, "base": {}}  # fmt: skip
    (folder / "study.yaml").write_text(yaml.safe_dump(record))
    return folder


def test_a_study_has_a_row_for_each_trial_and_their_count(study) -> None:
    assert [(r["name"], r["state"]) for r in records(study)] == [
        ("r/lr-1e-01/seed-0", "finished"), ("r/lr-1e-01/seed-1", "crashed"), ("r/lr-1e-01/seed-2", "not started"),
    ]  # fmt: skip
    counts = f"{study}: 3 trials: 1 finished, 1 crashed, 1 not started"
    assert " ".join(run(study).stdout.split()).endswith(counts)


def test_beside_other_runs_a_study_is_one_row(study, tmp_path) -> None:
    make_run(tmp_path / "runs" / "a" / "b")
    make_run(tmp_path / "runs" / "mlflow-artifacts" / "copy")
    lines = [line.split() for line in run(tmp_path / "runs").stdout.splitlines()[2:]]
    assert lines == [
        ["a/b", "unfinished", "0/100", "-", "-", "-", "-", "its", "process", "has", "ended"],
        ["study", "3", "trials", "200/300", "-", "1", "finished,", "1", "crashed,", "1", "not", "started"],
    ]


@pytest.mark.parametrize(
    ("path", "message"),
    [("nowhere", "nowhere: no such folder; give the folder of a run, of a study, or of several runs"),
     ("empty", "empty: holds no run and no study")],
)  # fmt: skip
def test_no_run_is_one_line(tmp_path, monkeypatch, path, message) -> None:
    monkeypatch.chdir(tmp_path)
    Path("empty").mkdir()
    result = run(path)
    assert (result.exit_code, result.stdout, result.stderr) == (2, "", message + "\n")


def test_status_imports_no_heavy_package(run_dir) -> None:
    heavy = ("torch", "mlflow", "submitit", "matplotlib")
    script = (
        "import sys; from launcher.cli import app\n"
        f"try: app(['status', {str(run_dir)!r}])\n"
        f"except SystemExit: print([name for name in {heavy} if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", script], env={"PYTHONPATH": str(ROOT)}, capture_output=True, text=True)
    assert done.stdout.endswith("\n[]\n"), done


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(-3, "0 s"), (59, "59 s"), (90, "2 min"), (5400, "1.5 h"), (50_000, "14 h"), (200_000, "2.3 d")],
)
def test_durations(seconds, text) -> None:
    assert duration(seconds) == text
