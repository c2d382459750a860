"""Jobs without Slurm, in real processes: stopped, killed, given up, cancelled; no step is lost, no process is left."""

import os
import signal
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import psutil
import pytest

from configs.errors import ConfigError
from configs.sites import BATCH_KEYS, load_site
from launcher.jobs import cancel, submit
from launcher.jobs.attempt import attempts, read_ranks
from launcher.jobs.decide import read_verdict
from launcher.jobs.job import Job, read_job
from launcher.jobs.queue import is_alive, local_supervisor
from launcher.jobs.rank import RankJob
from launcher.jobs.request import read_request
from launcher.jobs.standing import Queue, standing
from monitoring.recorder import read_events, read_metrics, without_times
from tests.distributed import spawn
from tests.training.test_run import TINY, tiny
from training.run import train

SMALL = [
    "model.layers=2", "model.hidden_size=32", "training.sequence_length=32", "training.global_batch_size=8",
    "training.steps=150", "checkpoint.interval=10", "monitoring.interval=100",
]  # fmt: skip
PATIENCE_S = 300.0  # a busy machine: each attempt starts processes that import torch

pytestmark = pytest.mark.timeout(900)


@pytest.fixture
def start(stdlib_bytes: Path, tmp_path: Path):
    """Submit the small run to this machine; what is left of its jobs is killed in the end."""
    jobs: list[Job] = []

    def submit_here(*overrides: str, ranks: int = 1) -> Job:
        fixed = [f"data.sources.0.path={stdlib_bytes}", f"run.dir={tmp_path}", "tracking.kind=none", *SMALL]
        request = read_request("local", {"tasks_per_node": ranks}, TINY, [*fixed, *overrides])
        jobs.append(submit.submit(request).job)
        return jobs[-1]

    yield submit_here
    for job in jobs:
        for process in processes(job):
            process.kill()


def wait(job: Job, condition: Callable[[], object], what: str) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline, f"not within {PATIENCE_S:.0f} s: {what}\n{logs(job)}"
        time.sleep(0.02)


def logs(job: Job) -> str:
    return "".join(path.read_text()[-3000:] for path in sorted(Path(job.log_folder).glob("*log*")))


def processes(job: Job) -> list[psutil.Process]:
    """The supervisor and ranks that are alive, known by the job's folder in their command lines."""
    found = []
    for process in psutil.process_iter(["cmdline", "status"]):
        words = process.info["cmdline"] or []
        if process.info["status"] != psutil.STATUS_ZOMBIE and any(word.startswith(job.folder) for word in words):
            found.append(process)
    return found


def trained(job: Job) -> int:
    path = Path(job.run_dir) / "metrics.jsonl"
    return max((line["step"] for line in read_metrics(Path(job.run_dir))), default=0) if path.exists() else 0


def train_on(job: Job, *, attempt: int) -> int:
    """Wait until the attempt, from 1, has trained some steps; the last of them."""

    def resumed_from() -> list[int]:
        events = read_events(Path(job.run_dir)) if Path(job.run_dir).exists() else []
        return [0, *(event["step"] for event in events if event["kind"] == "resume")]

    wait(job, lambda: len(resumed_from()) == attempt, f"attempt {attempt}")
    first = resumed_from()[-1]
    wait(job, lambda: trained(job) >= first + 3, f"steps of attempt {attempt}")
    return trained(job)


def verdicts(job: Job) -> list[str]:
    return [verdict.kind if (verdict := read_verdict(folder)) else "?" for folder in attempts(job.path)]


def rank_process(job: Job, rank: int) -> int:
    return read_ranks(attempts(job.path)[-1])[rank].pid


def supervisor(job: Job) -> int:
    pid = local_supervisor(job)
    assert pid is not None, logs(job)
    return pid


def state(job: Job) -> str:
    return standing(Path(job.run_dir), read_job(Path(job.run_dir)), Queue()).state


@pytest.mark.slow
def test_a_stop_and_a_killed_rank_leave_no_trace_in_what_is_trained(start, stdlib_bytes, tmp_path) -> None:
    expected = tiny(stdlib_bytes, tmp_path, 2, *SMALL, "parallel.tp=2", "run.name=expected")
    spawn(2, train, expected)
    job = start("parallel.tp=2", "run.name=job", ranks=2)
    assert train_on(job, attempt=1) < 150
    os.kill(supervisor(job), signal.SIGUSR2)
    assert train_on(job, attempt=2) < 150
    os.kill(rank_process(job, 1), signal.SIGKILL)
    wait(job, lambda: not is_alive(job, job.ids[0]), "the end")
    assert verdicts(job) == ["stopped", "crashed", "finished"]
    stopped, crashed, _ = attempts(job.path)
    assert read_verdict(stopped).reason == "asked to stop by SIGUSR2"  # type: ignore[union-attr]
    assert read_verdict(crashed).reason.startswith("rank 1 on ")  # type: ignore[union-attr]
    assert "was killed by SIGKILL" in read_verdict(crashed).reason  # type: ignore[union-attr]
    assert state(job) == "finished"
    assert processes(job) == []
    for mine, theirs in zip(read_metrics(Path(job.run_dir)), read_metrics(expected.run_dir), strict=True):
        assert without_times(mine) == without_times(theirs)


def test_the_same_crash_twice_is_the_last(start, monkeypatch) -> None:
    monkeypatch.setattr(submit, "RankJob", partial(RankJob, entry="math:sqrt"))  # refuses its two arguments each time
    job = start()
    wait(job, lambda: not is_alive(job, job.ids[0]), "the end")
    assert verdicts(job) == ["crashed", "crashed"]
    where = standing(Path(job.run_dir), job, Queue())
    assert where.state == "crashed"
    assert where.detail.startswith("rank 0 on ")
    assert where.detail.endswith("TypeError: math.sqrt() takes exactly one argument (2 given); "
                                 "the attempt before failed in the same way: given up")  # fmt: skip
    assert processes(job) == []


def test_a_cancelled_job_saves_ends_and_can_go_on(start) -> None:
    job = start("training.steps=100000", "parallel.tp=2", ranks=2)
    step = train_on(job, attempt=1)
    (done,) = cancel.cancel([Path(job.run_dir)])
    assert done.line() == f"{job.run_dir}: cancelled job {job.ids[0]}, which was running"
    assert processes(job) == []
    assert (state(job), verdicts(job)) == ("cancelled", ["stopped"])
    saved = max(int(path.name.removeprefix("step-")) for path in (Path(job.run_dir) / "checkpoints").glob("step-*"))
    assert saved == trained(job) >= step
    assert [again.line() for again in cancel.cancel([Path(job.run_dir)])] == [
        f"{job.run_dir}: nothing to cancel: cancelled"
    ]


def test_ranks_that_do_not_end_are_killed(start, monkeypatch) -> None:
    monkeypatch.setattr(cancel, "SECONDS_TO_SAVE", 1.0)
    job = start("training.steps=100000")
    train_on(job, attempt=1)
    os.kill(rank_process(job, 0), signal.SIGSTOP)
    cancel.cancel([Path(job.run_dir)])
    assert processes(job) == []
    assert state(job) == "cancelled"


def test_ranks_do_not_outlive_their_supervisor(start) -> None:
    job = start("training.steps=100000")
    train_on(job, attempt=1)
    os.kill(supervisor(job), signal.SIGKILL)
    wait(job, lambda: not processes(job), "the end of all processes")
    where = standing(Path(job.run_dir), job, Queue())
    assert (where.state, where.detail) == ("lost", "its supervisor was killed: the machine restarted, or SIGKILL")


@pytest.mark.parametrize("key", BATCH_KEYS)
def test_a_local_site_refuses_what_only_a_batch_script_uses(tmp_path, key) -> None:
    site = tmp_path / "site.yaml"
    values = {
        "setup": "[module load x]",
        "srun_args": "[-x]",
        "sbatch": "{comment: x}",
        "container": "apptainer exec x",
    }
    site.write_text(f"kind: local\n{key}: {values[key]}\n")
    with pytest.raises(ConfigError) as error:
        load_site(str(site))
    assert str(error.value) == f"{site}: {key}: must not be set where kind = local: only Slurm's jobs use it"
