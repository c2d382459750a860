"""The life of a job on a real Slurm of four nodes: preempted, requeued, killed, and always the same bits at the end.

Every run is submitted by the command line. The judge is a run of the same layout in plain processes.
"""

import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from cluster.lab import Lab
from configs.schema import Config
from launcher.jobs.attempt import attempts
from launcher.jobs.decide import read_verdict
from launcher.jobs.snapshot import PACKAGES
from monitoring.recorder import read_events, read_summary
from tests.distributed import spawn
from tests.launcher.jobs.slurm_runs import ROOT, Run, Runs
from tests.training.checkpoint.test_saver import assert_same_bits, assert_same_lines
from training.run import train

pytestmark = [pytest.mark.timeout(600), pytest.mark.usefixtures("slurm")]

STEPS = "training.steps=100"
TP2 = ["parallel.tp=2", STEPS]
TWO_NODES = ("--nodes", "2", "--tasks-per-node", "1")


@pytest.fixture(scope="module")
def runs(slurm_session: Lab, stdlib_bytes: Path, tmp_path_factory: pytest.TempPathFactory) -> Runs:
    return Runs(slurm_session, stdlib_bytes, tmp_path_factory.mktemp("runs"))


@pytest.fixture(scope="module")
def through(runs: Runs) -> Config:
    """The uninterrupted run."""
    config = runs.config(2, "through", *TP2)
    spawn(2, train, config)
    return config


def assert_as_uninterrupted(runs: Runs, run: Run, through: Config) -> None:
    ours = runs.config(2, run.run_dir.name, *TP2)
    summary = read_summary(run.run_dir)
    assert summary is not None and summary["status"] == "finished"
    assert_same_lines(ours, through)
    assert_same_bits(ours, through)


@pytest.mark.slow
def test_two_nodes_of_two_tasks_train_what_one_machine_trains(runs: Runs) -> None:
    layout = ["parallel.tp=2", "parallel.pp=2", "training.steps=30"]
    run = runs.submit("grid", *layout, options=("--nodes", "2", "--tasks-per-node", "2"))
    assert run.end() == "COMPLETED", run.log()
    local = runs.config(4, "grid-local", *layout)
    spawn(4, train, local)
    assert_same_lines(runs.config(4, "grid", *layout), local)
    assert_same_bits(runs.config(4, "grid", *layout), local)
    assert run.kinds() == ["finished"]
    assert (run.job.path.stat().st_mode & 0o777) == 0o700, "submitit runs the pickles it finds there"
    said = run.log()
    assert "node 127.0.1.1: 2 ranks" in said and "node 127.0.1.2: 2 ranks" in said and "all-reduce over 4 ranks" in said


def preempt(run: Run) -> None:
    """A job of the higher partition that needs all nodes."""
    run.lab.run("sbatch", "--partition=high", "--nodes=4", "--exclusive", "--output=/dev/null", "--wrap=sleep 3")


def requeue(run: Run) -> None:
    run.lab.run("scontrol", "requeue", run.job_id)


def send(name: str) -> Callable[[Run], None]:
    return lambda run: run.lab.run("scancel", f"--signal={name}", run.job_id) and None


INTERRUPTIONS = {
    "preempted by a higher partition": (preempt, "stopped"),
    "scontrol requeue": (requeue, "lost"),
    "SIGUSR2, as at the time limit": (send("USR2"), "stopped"),
    "SIGTERM": (send("TERM"), "stopped"),
}
FAST = ("preempted by a higher partition",)


@pytest.mark.parametrize(
    "how", [pytest.param(how, marks=() if how in FAST else pytest.mark.slow) for how in INTERRUPTIONS]
)
def test_an_interrupted_job_goes_on_by_itself_to_the_same_bits(runs: Runs, through: Config, how: str) -> None:
    interrupt, kind = INTERRUPTIONS[how]
    run = runs.submit(how.replace(" ", "-").replace(",", ""), *TP2, options=TWO_NODES)
    run.train_until(25)
    interrupt(run)
    assert run.end() == "COMPLETED", run.log()
    assert run.kinds() == [kind, "finished"]
    assert_as_uninterrupted(runs, run, through)
    (resumed,) = [event for event in read_events(run.run_dir) if event["kind"] == "resume"]
    if kind == "stopped":
        (stop,) = [event for event in read_events(run.run_dir) if event["kind"] == "stop"]
        assert resumed["step"] == stop["step"], "it was saved where it was told to stop"
    assert resumed["step"] >= 20


@pytest.mark.slow
def test_the_time_limit_itself(runs: Runs, through: Config) -> None:
    """A limit of one minute, of which 40 s are grace: Slurm looks every 30 s."""
    run = runs.submit("limit", "parallel.tp=2", "training.steps=8000", options=(*TWO_NODES, "--time", "1"))
    run.wait(lambda: len(attempts(run.job.path)) > 1 and run.steps() > 0, "the second attempt")
    assert run.kinds()[0] == "stopped"
    runs.command("cancel", str(run.run_dir))
    assert run.end() == "CANCELLED"


def test_a_killed_rank_is_named_and_the_job_goes_on(runs: Runs, through: Config) -> None:
    run = runs.submit("killed-rank", *TP2, options=TWO_NODES)
    run.train_until(25)
    run.ranks()[1].send_signal(signal.SIGKILL)
    took = run.wait(lambda: run.kinds()[0] != "?", "the verdict", seconds=60)
    assert took < 60
    assert run.end() == "COMPLETED", run.log()
    verdict = read_verdict(attempts(run.job.path)[0])
    assert verdict is not None
    assert (verdict.kind, verdict.rank, verdict.node) == ("crashed", 1, "127.0.1.2")
    assert "killed by SIGKILL" in verdict.reason
    assert_as_uninterrupted(runs, run, through)
    assert run.left_over() == []


@pytest.mark.slow
def test_a_killed_batch_step_ends_the_job_clearly_and_the_next_submission_goes_on(runs: Runs, through: Config) -> None:
    run = runs.submit("killed-batch", *TP2, options=TWO_NODES)
    run.train_until(25)
    next(process for process in processes_of(run) if "slurm_script" in " ".join(process.cmdline())).kill()
    started = time.monotonic()
    run.wait(lambda: run.state() in ("FAILED", "NODE_FAIL", "PENDING", "CANCELLED"), "the end", seconds=60)
    assert time.monotonic() - started < 60
    run.wait(lambda: run.left_over() == [], "the end of all ranks", seconds=60)
    again = runs.submit("killed-batch", *TP2, options=TWO_NODES)
    assert again.end() == "COMPLETED", again.log()
    assert_as_uninterrupted(runs, again, through)


def processes_of(run: Run) -> list[psutil.Process]:
    """Everything that Slurm started for the job."""
    return [
        process
        for process in psutil.process_iter(["environ", "cmdline"])
        if (process.info["environ"] or {}).get("SLURM_JOB_ID") == run.job_id
    ]


def test_a_lost_node_is_replaced(runs: Runs, through: Config) -> None:
    """Set down by `scontrol`, as an administrator or a health check does: Slurm requeues the job at once."""
    run = runs.submit("lost-node", *TP2, options=TWO_NODES)
    run.train_until(25)
    lost = run.lab.run("squeue", "--noheader", f"--jobs={run.job_id}", "--format=%B").strip()
    other = next(node for node in ("127.0.1.1", "127.0.1.2") if node != lost)
    run.lab.fail_node(other)
    try:
        assert run.end() == "COMPLETED", run.log()
    finally:
        run.lab.start_node(other)
    assert run.kinds() == ["lost", "finished"]
    assert_as_uninterrupted(runs, run, through)
    assert run.left_over() == []


@pytest.mark.slow
def test_a_node_without_power_is_replaced(runs: Runs, through: Config) -> None:
    """slurmd, its steps and the rank vanish together: Slurm notices after 25 to 30 s."""
    run = runs.submit("dead-node", *TP2, options=TWO_NODES)
    run.train_until(25)
    run.lab.kill_node("127.0.1.2")
    try:
        assert run.end() == "COMPLETED", run.log()
    finally:
        run.lab.start_node("127.0.1.2")
    assert_as_uninterrupted(runs, run, through)


@pytest.mark.slow
def test_fewer_nodes_are_enough_where_the_layout_allows_it(runs: Runs) -> None:
    """dp 2 on two nodes; one is lost and none is spare: it goes on with dp 1, on the same samples."""
    overrides = [STEPS, "training.micro_batch_size=4"]
    run = runs.submit(
        "fewer", *overrides, options=("--nodes", "1-2", "--tasks-per-node", "1", "--exclude", "127.0.1.[3-4]")
    )
    run.train_until(25)
    run.lab.fail_node("127.0.1.2")
    try:
        assert run.end() == "COMPLETED", run.log()
    finally:
        run.lab.start_node("127.0.1.2")
    assert run.kinds() == ["lost", "finished"]
    assert (run.run_dir / "summary.json").exists()
    one = runs.config(1, "fewer-local", *overrides)
    spawn(1, train, one)
    ours = read_summary(run.run_dir)
    theirs = read_summary(one.run_dir)
    assert ours is not None and theirs is not None
    assert ours["val_loss"] == pytest.approx(theirs["val_loss"], rel=1e-4)


@pytest.mark.slow
def test_a_deterministic_failure_is_tried_twice_and_told_once(runs: Runs, tmp_path: Path) -> None:
    """The second attempt is what it takes to know that it is deterministic."""
    checkout = buggy_checkout(
        tmp_path / "checkout", 'if step == 12 and topology.rank == 1: raise ValueError("bad batch")'
    )
    run = runs.submit("deterministic", "parallel.tp=2", STEPS, options=TWO_NODES, cwd=checkout)
    assert run.end() == "FAILED"
    assert run.kinds() == ["crashed", "crashed"]
    last = read_events(run.run_dir)[-1]
    assert last["reason"] == (
        "rank 1 on 127.0.1.2 failed at step 13: ValueError: bad batch; 1 other ranks were ended; "
        "the attempt before failed in the same way: given up"
    )
    assert run.left_over() == []


def buggy_checkout(folder: Path, line: str) -> Path:
    """A copy of the packages with a line more at the beginning of each step."""
    for package in PACKAGES:
        shutil.copytree(ROOT / package, folder / package, ignore=shutil.ignore_patterns("__pycache__"))
    path = folder / "training" / "run.py"
    anchor = "            measuring = "
    source = path.read_text()
    assert anchor in source
    path.write_text(source.replace(anchor, f"            {line}\n{anchor}", 1))
    return folder


def test_edits_after_submission_do_not_reach_the_job(runs: Runs, tmp_path: Path) -> None:
    checkout = buggy_checkout(tmp_path / "checkout", "pass")
    blocker = runs.lab.run("sbatch", "--parsable", "--hold", "--output=/dev/null", "--wrap=true").strip()
    waiting = ("--tasks-per-node", "1", "--dependency", f"afterany:{blocker}")
    run = runs.submit("snapshot", STEPS, options=waiting, cwd=checkout)
    (checkout / "training" / "run.py").write_text("raise SystemExit(7)")
    run.lab.run("scancel", blocker)
    assert run.end() == "COMPLETED", run.log()


@pytest.mark.slow
def test_a_node_that_fails_its_health_check_is_left_out_of_the_next_attempt(runs: Runs, tmp_path: Path) -> None:
    site = tmp_path / "site.yaml"
    check = 'test "$SLURMD_NODENAME" != 127.0.1.2 || { echo fan broken; exit 1; }'
    text = (ROOT / "configs" / "sites" / "lab.yaml").read_text()
    site.write_text(text + f"preflight:\n  command: '{check}'\n")
    settings = runs.settings("unfit", *TP2)
    done = runs.command("submit", str(ROOT / "configs" / "tiny.yaml"), *settings, "--cluster", str(site), *TWO_NODES)
    assert done.returncode == 0, done.stderr
    run = Run(runs.lab, runs.folder / "unfit")
    assert run.end() == "COMPLETED", run.log()
    assert run.kinds() == ["unfit", "finished"]
    reason = next(event["reason"] for event in read_events(run.run_dir) if event["kind"] == "attempt_unfit")
    assert "127.0.1.2" in reason and "fan broken" in reason
    assert "127.0.1.2" in run.lab.run("scontrol", "show", "job", run.job_id).split("ExcNodeList=")[1].split()[0]


@pytest.mark.slow
def test_a_chain_goes_on_where_requeueing_is_not_allowed(runs: Runs, through: Config) -> None:
    run = runs.submit("chain", *TP2, options=(*TWO_NODES, "--chain", "2"))
    first, second = run.job.ids
    run.train_until(25)
    run.lab.run("scancel", "--signal=USR2", first)
    run.wait(lambda: "finished" in run.kinds(), "the end of the chain")
    assert run.kinds() == ["stopped", "finished"]
    assert [folder.name for folder in attempts(run.job.path)] == [f"{first}.0", f"{second}.0"]
    assert_as_uninterrupted(runs, run, through)


def test_a_cancelled_job_stays_cancelled(runs: Runs) -> None:
    run = runs.submit("cancelled", "parallel.tp=2", "training.steps=5000", options=TWO_NODES)
    run.train_until(5)
    run.lab.run("scancel", run.job_id)
    assert run.end() == "CANCELLED"
    run.wait(lambda: run.left_over() == [], "the end of all ranks", seconds=30)
    time.sleep(8)  # a requeue would have started it by now: cred_expire + 1 s
    assert run.state() == "CANCELLED"
    assert len(attempts(run.job.path)) == 1
