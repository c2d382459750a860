"""What becomes of a job after an attempt."""

import json
import time
from dataclasses import replace
from pathlib import Path

import pytest

from configs.load import dump, load
from launcher.jobs import decide as decisions
from launcher.jobs.decide import decide, read_verdict, settle, slurm_job_id, unfit_nodes
from launcher.jobs.job import Job
from launcher.jobs.verdict import Verdict
from launcher.run_folder import CONFIG
from monitoring.mlflow_store import RUN_ID, connect
from tests.launcher.jobs.records import CONNECTION, attempt, ended, failed
from tests.training.test_run import TINY

JOB = Job(folder="", run_dir="", site="lab", kind="slurm", retries=2)
CRASH = Verdict("crashed", "rank 1 failed", rank=1, step=12, error="ValueError: x")


@pytest.mark.parametrize(("kind", "code"), [("finished", 0), ("diverged", 3), ("refused", 2)])
def test_an_end_for_good(kind: str, code: int) -> None:
    decision = decide(JOB, Verdict(kind, "why"), [])
    assert (decision.again, decision.exit_code, decision.reason) == (False, code, "why")


def test_a_stop_starts_again_however_often() -> None:
    stops = [Verdict("stopped", "asked to stop by SIGUSR2")] * 50
    assert decide(JOB, stops[0], stops).again


def test_a_stop_where_requeueing_is_not_allowed_ends_well() -> None:
    decision = decide(
        Job(folder="", run_dir="", site="", kind="slurm", requeue=False), Verdict("stopped", "SIGUSR2"), []
    )
    assert (decision.again, decision.exit_code) == (False, 0)


def test_the_same_error_at_the_same_step_twice_is_not_tried_a_third_time() -> None:
    assert decide(JOB, CRASH, []).again
    decision = decide(JOB, CRASH, [CRASH])
    assert not decision.again
    assert "the attempt before failed in the same way" in decision.reason


def test_a_stop_in_between_does_not_hide_a_deterministic_failure() -> None:
    assert not decide(JOB, CRASH, [CRASH, Verdict("stopped", "SIGUSR2"), Verdict("lost", "a node")]).again


@pytest.mark.parametrize("other", [{"step": 13}, {"error": "ValueError: y"}])
def test_another_failure_is_tried_again_until_the_retries_are_used_up(other: dict) -> None:
    values = {"kind": "crashed", "reason": "", "rank": 1, "step": 12, "error": "ValueError: x"}
    past = [Verdict(**values)]
    assert decide(JOB, Verdict(**values | other), past).again
    past += [Verdict("crashed", "", error="third", step=99)]
    decision = decide(JOB, Verdict(**values | other), past)
    assert (decision.again, decision.exit_code) == (False, 1)
    assert "given up after 3 failed attempts" in decision.reason


def test_unfit_nodes_use_up_retries_too() -> None:
    unfit = Verdict("unfit", "n1: unfit", unfit_nodes=["n1"])
    assert decide(JOB, unfit, [unfit]).again
    assert not decide(JOB, unfit, [unfit, unfit]).again


def test_settle_writes_verdict_and_decision_and_counts_earlier_attempts(tmp_path: Path) -> None:
    job = Job(folder=str(tmp_path), run_dir=str(tmp_path), site="lab", kind="slurm")
    folders = [tmp_path / "attempts" / f"7.{restart}" for restart in range(2)]
    attempt(folders[0], failed("ValueError: x", at=20.0))
    _, first = settle(job, "7.0", 1)
    attempt(folders[1], failed("ValueError: x", at=50.0) | {"began": 40.0})
    _, second = settle(job, "7.1", 1)
    assert (first.again, second.again) == (True, False)
    verdict = read_verdict(folders[1])
    assert verdict is not None
    assert verdict.error == "ValueError: x"
    assert json.loads((folders[1] / "end.json").read_text())["decision"]["exit_code"] == 1


def test_settle_of_an_attempt_whose_ranks_never_began(tmp_path: Path) -> None:
    job = Job(folder=str(tmp_path), run_dir=str(tmp_path), site="lab", kind="slurm")
    verdict, decision = settle(job, "7.0", 1)
    assert (verdict.kind, decision.again) == ("vanished", True)


def test_finished_twice_stays_finished(tmp_path: Path) -> None:
    """Slurm may requeue a job that has just finished (a preemption's grace ran out)."""
    job = Job(folder=str(tmp_path), run_dir=str(tmp_path), site="lab", kind="slurm")
    for restart in range(2):
        attempt(tmp_path / "attempts" / f"7.{restart}", ended("finished"))
        assert settle(job, f"7.{restart}", 0)[1].again is False


def test_the_last_element_of_an_array_is_named_by_array_and_index() -> None:
    """Its plain number is the array's: requeueing that would start every element again."""
    array = {"SLURM_JOB_ID": "42", "SLURM_ARRAY_JOB_ID": "42", "SLURM_ARRAY_TASK_ID": "7"}
    assert slurm_job_id(array) == "42_7"
    assert slurm_job_id({"SLURM_JOB_ID": "42"}) == "42"


@pytest.mark.parametrize(("second", "again"), [(25, False), (60, True)])
def test_a_rank_that_is_killed_twice_has_failed_in_the_same_way_only_at_the_same_step(
    tmp_path: Path, second: int, again: bool
) -> None:
    job = Job(folder=str(tmp_path / "job"), run_dir=str(tmp_path), site="lab", kind="slurm")
    for restart, step in enumerate((25, second)):
        attempt(tmp_path / "job" / "attempts" / f"7.{restart}", {}, failed(CONNECTION, at=20.0))
        (tmp_path / "metrics.jsonl").write_text(f'{{"step": {step}}}\n')
        verdict, decision = settle(job, f"7.{restart}", 137)
        assert (verdict.rank, verdict.step) == (0, step + 1)
    assert decision.again is again


def test_all_nodes_found_unfit_since_the_submission_are_left_out(tmp_path: Path) -> None:
    job = Job(folder=str(tmp_path), run_dir=str(tmp_path), site="lab", kind="slurm")
    for restart, node in enumerate(("n1", "n2", "n1")):
        attempt(tmp_path / "attempts" / f"7.{restart}", {"began": 10.0 + restart}, unfit=[node])
        settle(job, f"7.{restart}", 1)
    assert unfit_nodes(job) == ["n1", "n2"]
    assert unfit_nodes(replace(job, submitted=time.time() + 1)) == []


CHAIN = replace(JOB, requeue=False, ids=["7", "8", "9"])


@pytest.mark.parametrize(
    ("verdict", "earlier", "links"),
    [
        (Verdict("finished", ""), [], ["9", "8"]),
        (Verdict("refused", ""), [], ["9", "8"]),
        (CRASH, [], []),
        (CRASH, [CRASH], ["9", "8"]),
        (Verdict("stopped", ""), [], []),
    ],
)
def test_a_chain_ends_where_later_links_have_nothing_left_to_do(
    monkeypatch: pytest.MonkeyPatch, verdict: Verdict, earlier: list[Verdict], links: list[str]
) -> None:
    asked: list[str] = []
    monkeypatch.setattr(decisions, "_slurm", lambda *command: asked.extend(command))
    decisions._tell_chain(CHAIN, decisions._later_links(CHAIN, "7"), verdict, decide(CHAIN, verdict, earlier))
    assert asked == (["scancel", *links] if links else [])


def test_a_run_given_up_is_closed_in_mlflow(tmp_path: Path) -> None:
    """Its rank 0 was killed and could not."""
    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    config = load(TINY, [f"run.dir={tmp_path}", "run.name=a", "tracking.kind=mlflow", f"tracking.uri={uri}"])
    client = connect(uri)
    run = client.create_run(client.create_experiment("x"), run_name="a").info
    config.run_dir.mkdir()
    (config.run_dir / CONFIG).write_text(dump(config))
    (config.run_dir / RUN_ID).write_text(run.run_id)
    job = replace(JOB, run_dir=str(config.run_dir))
    decisions.record_event(job, CRASH, decide(job, CRASH, []))
    assert client.get_run(run.run_id).info.status == "RUNNING"
    decisions.record_event(job, CRASH, decide(job, CRASH, [CRASH]))
    assert client.get_run(run.run_id).info.status == "FAILED"
