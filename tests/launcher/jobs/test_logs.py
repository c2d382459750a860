"""`steadytrain logs`: whose lines, of which attempt, and following a job over its attempts to its end."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner

from configs.errors import LaunchError
from launcher.cli import app
from launcher.jobs import logs
from launcher.jobs.attempt import log_banner
from launcher.jobs.job import Job
from tests.launcher.jobs.queues import FakeQueue, make_attempt, make_job, make_run

FIRST, SECOND = log_banner("7_1.0"), log_banner("7_1.1")


@pytest.fixture
def job(tmp_path: Path) -> Job:
    """Two ranks of an array's element wrote in two attempts."""
    job = make_job(make_run(tmp_path / "a"), "7_1")
    for name, began in (("7_1.0", 60), ("7_1.1", 30)):
        make_attempt(job, name, began=began)
    Path(job.log_folder).mkdir()
    for rank in (0, 1):
        write(job, rank, "out", f"{FIRST}\nout {rank} one\n{SECOND}\nout {rank} two\n")
        write(job, rank, "err", f"{FIRST}\nerr {rank} one\n{SECOND}\nerr {rank} two")
    (Path(job.log_folder) / "7_10_0_log.out").write_text("another element's\n")
    return job


def write(job: Job, rank: int, kind: str, text: str, job_id: str = "7_1") -> None:
    with (Path(job.log_folder) / f"{job_id}_{rank}_log.{kind}").open("a") as file:
        file.write(text)


def run(job: Job, *options: str):
    return CliRunner().invoke(app, ["logs", job.run_dir, *options])


def lines(job: Job, *options: str) -> list[str]:
    result = run(job, *options)
    assert result.exit_code == 0, result.output
    return [line for line in result.stdout.splitlines() if line]


def test_rank_0_out_then_err_of_all_attempts(job) -> None:
    assert lines(job) == [
        "==> 7_1_0_log.out <==", FIRST, "out 0 one", SECOND, "out 0 two",
        "==> 7_1_0_log.err <==", FIRST, "err 0 one", SECOND, "err 0 two",
    ]  # fmt: skip


def test_one_rank_s_errors(job) -> None:
    assert lines(job, "--rank", "1", "--err")[1:] == [FIRST, "err 1 one", SECOND, "err 1 two"]


def test_all_ranks_say_who_they_are(job) -> None:
    assert lines(job, "--rank", "all", "--attempt", "2") == [
        f"0: {SECOND}", "0: out 0 two", f"0: {SECOND}", "0: err 0 two",
        f"1: {SECOND}", "1: out 1 two", f"1: {SECOND}", "1: err 1 two",
    ]  # fmt: skip


def test_the_first_attempt(job) -> None:
    assert lines(job, "--attempt", "1", "--err")[1:] == [FIRST, "err 0 one"]


def test_the_links_of_a_chain_follow_each_other(tmp_path) -> None:
    job = make_job(make_run(tmp_path / "chain"), "11", "9")
    Path(job.log_folder).mkdir()
    write(job, 0, "out", "first\n", "11")
    write(job, 0, "out", "second\n", "9")
    assert lines(job) == ["==> 11_0_log.out <==", "first", "==> 9_0_log.out <==", "second"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--rank", "2"], "{run}: --rank = 2: its ranks are 0 to 1"),
        (["--rank", "-1"], "--rank = -1: must be a rank from 0, or all"),
        (["--attempt", "3"], "--attempt = 3: {run} had 1 to 2"),
        (["--attempt", "0"], "--attempt = 0: {run} had 1 to 2"),
        (["--attempt", "1", "-f"],
         "command line: --follow, --attempt: only one of them; --follow goes over all attempts"),
    ],
)  # fmt: skip
def test_what_is_not_there_is_one_line(job, options, message) -> None:
    result = run(job, *options)
    assert (result.exit_code, result.stderr) == (2, message.format(run=job.run_dir) + "\n")


def test_before_it_began_its_state_is_told(tmp_path, monkeypatch) -> None:
    FakeQueue.install(tmp_path / "bin", monkeypatch).shows("7 PENDING - - Resources")
    job = make_job(make_run(tmp_path / "b"), "7")
    result = run(job)
    message = f"{job.run_dir}: nothing was written yet: pending (Resources)\n"
    assert (result.exit_code, result.stderr) == (2, message)


def test_a_run_that_is_no_job(tmp_path) -> None:
    run_dir = make_run(tmp_path / "b")
    result = CliRunner().invoke(app, ["logs", str(run_dir)])
    message = f"{run_dir}: was not submitted as a job (there is no job/job.json)\n"
    assert (result.exit_code, result.stderr) == (2, message)


@pytest.fixture
def life(monkeypatch) -> Callable[[Iterator[bool]], None]:
    """Each question whether the job is alive is a step of its life."""

    def lives(steps: Iterator[bool]) -> None:
        monkeypatch.setattr(logs, "_is_alive", lambda job: next(steps))
        monkeypatch.setattr(logs, "SECONDS_BETWEEN_QUESTIONS", {"slurm": 0.0, "local": 0.0})
        monkeypatch.setattr(logs, "POLL_SECONDS", 0.0)

    return lives


def followed(job: Job, **options) -> str:
    said: list[str] = []
    logs.follow_logs(Path(job.run_dir), said.append, **options)
    return "".join(said)


def test_following_goes_over_attempts_until_the_end(tmp_path, life) -> None:
    job = make_job(make_run(tmp_path / "f"), "7_1")
    Path(job.log_folder).mkdir()

    def steps() -> Iterator[bool]:
        yield True  # waits: no file yet
        write(job, 0, "out", f"{FIRST}\nhalf a ")
        yield True
        write(job, 0, "out", "line\n")
        yield True
        write(job, 0, "err", "Traceback\n")
        yield True
        write(job, 0, "out", f"{SECOND}\nlast, without an end of line")
        yield False
        while True:
            yield False

    life(steps())
    assert followed(job) == (
        f"==> 7_1_0_log.out <==\n{FIRST}\nhalf a line\n\n==> 7_1_0_log.err <==\nTraceback\n"
        f"\n==> 7_1_0_log.out <==\n{SECOND}\nlast, without an end of line\n"
    )


def test_what_is_written_after_the_last_question_is_not_lost(job, life, monkeypatch) -> None:
    read = logs._new_lines

    def read_and_grow(path: Path, offset: int, *, to_the_end: bool):
        found = read(path, offset, to_the_end=to_the_end)
        if offset == 0 and path.name == "7_1_0_log.out":
            write(job, 0, "out", "late\n")
        return found

    monkeypatch.setattr(logs, "_new_lines", read_and_grow)
    life(iter([False] * 100))
    assert followed(job).endswith("late\n")


def test_following_a_job_that_ended_prints_what_there_is(job, life) -> None:
    life(iter([False] * 100))
    assert followed(job, rank=1, errors_only=True).splitlines()[1:] == [FIRST, "err 1 one", SECOND, "err 1 two"]


def test_following_without_squeue_is_refused(job, tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(LaunchError, match="there is no squeue on this machine"):
        followed(job)


def test_ctrl_c_ends_following_without_a_word(job, monkeypatch) -> None:
    def interrupted(job: Job) -> bool:
        raise KeyboardInterrupt

    monkeypatch.setattr(logs, "_is_alive", interrupted)
    result = run(job, "-f")
    assert (result.exit_code, result.stderr) == (130, "")
