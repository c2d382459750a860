"""Who is to blame: the first cause, not what followed from it."""

from pathlib import Path

import pytest

from launcher.jobs.verdict import judge, lost
from tests.launcher.jobs.records import CONNECTION, attempt, ended, failed, told


@pytest.mark.parametrize("how", ["finished", "diverged"])
def test_rank_0_says_how_a_run_ended(tmp_path: Path, how: str) -> None:
    assert judge(attempt(tmp_path / "a", ended(how), ended(how)), 0).kind == how


def test_the_exception_that_is_no_lost_connection_is_the_cause_even_if_told_later(tmp_path: Path) -> None:
    folder = attempt(
        tmp_path / "a",
        failed(CONNECTION, at=20.0),
        failed(CONNECTION, at=20.1),
        failed("ValueError: bad batch", at=20.2),  # its clock is behind
        failed(CONNECTION, at=20.3),
    )
    verdict = judge(folder, 1)
    assert (verdict.kind, verdict.rank, verdict.node, verdict.step) == ("crashed", 2, "n1", 12)
    assert verdict.reason == "rank 2 on n1 failed at step 12: ValueError: bad batch; 3 other ranks were ended"


def test_of_several_causes_the_first_counts(tmp_path: Path) -> None:
    folder = attempt(tmp_path / "a", failed("ValueError: late", at=21.0), failed("KeyError: 'early'", at=20.0))
    assert judge(folder, 1).rank == 1


def test_a_rank_that_left_no_word_was_killed_and_took_the_others_along(tmp_path: Path) -> None:
    folder = attempt(
        tmp_path / "a", failed(CONNECTION, at=20.0), {}, failed(CONNECTION, at=20.0), failed("NCCL", at=21)
    )
    verdict = judge(folder, 137)
    assert (verdict.kind, verdict.rank) == ("crashed", 1)
    assert verdict.reason.startswith("rank 1 on n0 was killed by SIGKILL (out of memory?)")


def test_ranks_that_hung_until_they_were_killed_are_not_the_one_that_was_killed_first(tmp_path: Path) -> None:
    """With NCCL the others say nothing: they wait, are told to end by srun, and are killed."""
    folder = attempt(tmp_path / "a", told("SIGTERM"), told("SIGTERM"), {}, told("SIGTERM"))
    assert judge(folder, 137).rank == 2


def test_a_save_that_was_cut_short_is_a_stop_and_no_crash(tmp_path: Path) -> None:
    folder = attempt(tmp_path / "a", told("SIGTERM"), told("SIGTERM"))
    assert judge(folder, 0).kind == "stopped"


def test_ranks_that_agreed_to_stop(tmp_path: Path) -> None:
    folder = attempt(tmp_path / "a", ended("stopped") | told("SIGUSR2"), ended("stopped"))
    verdict = judge(folder, 0)
    assert (verdict.kind, verdict.reason) == ("stopped", "asked to stop by SIGUSR2")


@pytest.mark.parametrize("exit_code", [140, 143])
def test_a_signal_before_python_listens_is_a_stop(tmp_path: Path, exit_code: int) -> None:
    assert judge(attempt(tmp_path / "a", {}, {}), exit_code).kind == "stopped"
    assert judge(attempt(tmp_path / "b"), exit_code).kind == "stopped"


def test_the_users_mistake_is_told_as_it_is(tmp_path: Path) -> None:
    refused = {"how": "refused", "message": "training.steps = 1: must be at least 20", "ended": 20.0}
    verdict = judge(attempt(tmp_path / "a", refused, refused), 2)
    assert (verdict.kind, verdict.reason) == ("refused", refused["message"])


def test_unfit_nodes_come_before_what_the_ranks_say(tmp_path: Path) -> None:
    folder = attempt(tmp_path / "a", {"how": "refused", "message": "unfit nodes: n1", "ended": 20.0}, unfit=["n1"])
    verdict = judge(folder, 2)
    assert (verdict.kind, verdict.unfit_nodes) == ("unfit", ["n1"])


def test_no_rank_began(tmp_path: Path) -> None:
    verdict = judge(attempt(tmp_path / "a"), 1)
    assert verdict.kind == "vanished"
    assert "exit code 1" in verdict.reason


def test_an_attempt_nobody_judged_says_what_it_was_told(tmp_path: Path) -> None:
    assert "SIGTERM" in lost(attempt(tmp_path / "a", told("SIGTERM"), {})).reason
    saved = lost(attempt(tmp_path / "c", ended("stopped") | told("SIGTERM"), told("SIGTERM"))).reason
    assert saved == "ended from outside after SIGTERM; stopped after step 30"
    assert "loss of a node" in lost(attempt(tmp_path / "b", {}, {})).reason
