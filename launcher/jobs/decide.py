"""After the ranks of an attempt have ended: is the job finished, does it start again, or is it given up?

The batch script calls it on the first node (`python -m launcher.jobs.decide JOB_FOLDER EXIT_CODE`). It is not reached
when Slurm ends the batch script itself (scancel, an outside requeue, a preemption without warning, a lost node): then
Slurm's own decision stands, and the next attempt goes on from the newest checkpoint.
"""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from configs.atomic import write_atomically
from configs.errors import DataError
from launcher.jobs.attempt import ATTEMPTS, END, attempts, read_json, read_ranks
from launcher.jobs.job import Job, read_job
from launcher.jobs.place import restart_count
from launcher.jobs.verdict import Verdict, judge, lost

FINISHED, CRASHED, USER_ERROR, DIVERGED = 0, 1, 2, 3
EXIT_CODES = {"finished": FINISHED, "diverged": DIVERGED, "refused": USER_ERROR, "stopped": FINISHED}
SECONDS_TO_EXCLUDE = 20.0


@dataclass(frozen=True)
class Decision:
    """What becomes of the job; `reason` says why in one line."""

    again: bool
    exit_code: int
    reason: str
    for_good: bool = False
    """Whether the later links of a chain would only show the same."""


def decide(job: Job, verdict: Verdict, earlier: Sequence[Verdict]) -> Decision:
    """From the verdict on this attempt and on those before it.

    A stop counts for nothing. The same error at the same step twice ends the retries, and a chain: a third attempt
    would show it again.
    """
    if verdict.kind in ("finished", "diverged", "refused"):
        return Decision(False, EXIT_CODES[verdict.kind], verdict.reason, for_good=True)
    if job.cancelled is not None:
        return Decision(False, FINISHED, f"cancelled: {verdict.reason}")
    if verdict.kind == "stopped":
        if job.requeue:
            return Decision(True, FINISHED, verdict.reason)
        return Decision(False, FINISHED, f"{verdict.reason}; not requeued: this site or chain does not allow it")
    before = [past for past in earlier if past.kind == "crashed"]
    if any(verdict.same_failure(past) for past in before[-1:]):
        reason = f"{verdict.reason}; the attempt before failed in the same way: given up"
        return Decision(False, CRASHED, reason, for_good=True)
    if not job.requeue:
        return Decision(False, CRASHED, f"{verdict.reason}; not retried: this site or chain does not allow it")
    failures = sum(past.kind in ("crashed", "vanished", "unfit") for past in earlier) + 1
    if failures > job.retries:
        return Decision(False, CRASHED, f"{verdict.reason}; given up after {failures} failed attempts")
    return Decision(True, CRASHED, f"{verdict.reason}; attempt {failures} of {job.retries + 1} that may fail")


def settle(job: Job, attempt: str, exit_code: int) -> tuple[Verdict, Decision]:
    """Judge an attempt, decide, and write both down."""
    folder = job.path / ATTEMPTS / attempt
    folder.mkdir(parents=True, exist_ok=True)
    verdict = judge(folder, exit_code)
    if verdict.kind == "crashed" and verdict.step is None:
        verdict = replace(verdict, step=_step_under_way(job, folder))
    earlier = verdicts(job, [path for path in attempts(job.path) if path != folder])
    decision = decide(job, verdict, earlier)
    write_end(folder, verdict, decision)
    return verdict, decision


def verdicts(job: Job, folders: Sequence[Path]) -> list[Verdict]:
    """On those attempts that were judged; an earlier submission's say nothing of what was submitted now."""
    ends = [end for path in folders if (end := read_json(path / END)) is not None]
    return [Verdict(**end["verdict"]) for end in ends if end["time"] >= job.submitted]


def _step_under_way(job: Job, attempt: Path) -> int | None:
    """Of a rank that was killed before it could say: the step after the last one logged; None before the first."""
    from monitoring.recorder import METRICS, last_metrics

    metrics, began = Path(job.run_dir) / METRICS, min(record.began for record in read_ranks(attempt))
    if not metrics.exists() or metrics.stat().st_mtime < began:
        return None
    try:
        last = last_metrics(Path(job.run_dir))
    except DataError:  # torn by the crash of a machine
        return None
    return None if last is None else int(last["step"]) + 1


def note_lost(job: Job, current: str) -> None:
    """Close earlier attempts that nobody came to judge: Slurm ended them as a whole, or their first node is gone."""
    for folder in attempts(job.path):
        if folder.name == current or (folder / END).exists():
            continue
        verdict = lost(folder)
        decision = Decision(True, FINISHED, verdict.reason)
        write_end(folder, verdict, decision)
        record_event(job, verdict, decision)


def write_end(folder: Path, verdict: Verdict, decision: Decision) -> None:
    """Leave both for status and later attempts."""
    end = {"time": time.time(), "verdict": asdict(verdict), "decision": asdict(decision)}
    write_atomically(folder / END, json.dumps(end, indent=2))


def read_verdict(attempt: Path) -> Verdict | None:
    """The verdict on an attempt; None if nobody came to judge it."""
    end = read_json(attempt / END)
    return None if end is None else Verdict(**end["verdict"])


def main(job_dir: Path, exit_code: int) -> int:
    """On the batch host of a Slurm job. Returns the job's exit code."""
    # A requeue ends this process too, by SIGTERM first: what is left to do comes after it.
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    job = read_job(job_dir.parent)
    job_id = slurm_job_id(os.environ)
    verdict, decision = settle(job, f"{job_id}.{restart_count()}", exit_code)
    print(f"{verdict.kind}: {decision.reason}", file=sys.stderr, flush=True)  # noqa: T201
    record_event(job, verdict, decision)
    if not decision.again:
        _tell_chain(job, _later_links(job, job_id), verdict, decision)
        return decision.exit_code
    if not _requeue(job_id):
        return CRASHED
    if verdict.unfit_nodes:
        _exclude(job_id, job)
    return decision.exit_code


def slurm_job_id(environment: Any) -> str:
    """`123`, or `123_4` of an array: the plain number of an array's last element names the whole array."""
    array, task = environment.get("SLURM_ARRAY_JOB_ID"), environment.get("SLURM_ARRAY_TASK_ID")
    return f"{array}_{task}" if array and task else environment["SLURM_JOB_ID"]


def _requeue(job_id: str) -> bool:
    """Put the job back into the queue; one that Slurm has put there already counts."""
    for pause in (1.0, 5.0, 20.0, 60.0, 0.0):  # while slurmctld restarts, or its backup takes over
        done = _slurm("scontrol", "requeue", job_id)
        if done.returncode == 0 or "pending" in (done.stdout + done.stderr).lower():
            return True
        time.sleep(pause)
    print(f"scontrol requeue {job_id}: {done.stderr.strip()}; submit it again to go on", file=sys.stderr)  # noqa: T201
    return False


def _later_links(job: Job, job_id: str) -> list[str]:
    """The jobs of a chain that wait for this one."""
    return job.ids[job.ids.index(job_id) + 1 :] if job_id in job.ids else []


def _tell_chain(job: Job, links: Sequence[str], verdict: Verdict, decision: Decision) -> None:
    """Take the links that have nothing left to do out of the queue, and keep the others off unfit nodes."""
    if links and decision.for_good:
        _slurm("scancel", *reversed(links))  # from the last on, so that none starts because another ended
    elif verdict.unfit_nodes:
        for link in links:
            _exclude(link, job)


def unfit_nodes(job: Job) -> list[str]:
    """The nodes that any attempt of this submission has found unfit."""
    found = (node for verdict in verdicts(job, attempts(job.path)) for node in verdict.unfit_nodes)
    return list(dict.fromkeys(found))


def _exclude(job_id: str, job: Job) -> None:
    """Keep the next attempts off unfit nodes; Slurm takes that only once the job is pending again."""
    before = job.resources.get("exclude")
    wanted = ",".join([*([before] if before else []), *unfit_nodes(job)])
    deadline = time.monotonic() + SECONDS_TO_EXCLUDE
    while time.monotonic() < deadline:
        if _slurm("scontrol", "update", f"JobId={job_id}", f"ExcNodeList={wanted}").returncode == 0:
            return
        time.sleep(0.2)


def _slurm(*command: str) -> subprocess.CompletedProcess[str]:
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    except subprocess.TimeoutExpired:
        return subprocess.CompletedProcess(command, 1, "", "no answer within 60 s")


def record_event(job: Job, verdict: Verdict, decision: Decision) -> None:
    """An event of the run: how the attempt ended and what follows; of a trial given up, also its study's record."""
    from comparison.record import FAILURE
    from monitoring.recorder import append_event, write_json

    run_dir = Path(job.run_dir)
    if not run_dir.is_dir():
        return
    details = {"rank": verdict.rank, "node": verdict.node, "again": decision.again}
    append_event(run_dir, verdict.step or 0, f"attempt_{verdict.kind}", decision.reason, **details)
    if not decision.again and decision.exit_code in (CRASHED, USER_ERROR):
        failure = {"exit_code": decision.exit_code, "reason": decision.reason, "log": job.log_folder}
        write_json(run_dir / FAILURE, failure)
        _close_tracking(run_dir)


def _close_tracking(run_dir: Path) -> None:
    """A rank that was killed could not: the MLflow run must not look as if it went on."""
    from configs.load import load
    from launcher.run_folder import CONFIG
    from monitoring.mlflow_store import RUN_ID, mark_failed

    if (run_dir / RUN_ID).is_file():
        mark_failed(load(run_dir / CONFIG), run_dir)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), int(sys.argv[2])))
