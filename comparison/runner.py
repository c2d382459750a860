"""The trials of a sweep as processes of this machine, some at a time, until each has a result or has failed."""

import contextlib
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from comparison.display import Display
from comparison.processes import TrialProcess
from comparison.record import FAILURE, STOPPED, trial_config
from comparison.stopping import Stopped, Watch
from comparison.study import Study, Trial
from comparison.trials import has_ended, logs
from monitoring.mlflow_store import mark_failed, mark_stopped
from monitoring.recorder import SUMMARY, last_metrics, read_stopped, read_summary, write_json

DIVERGED = 3  # the exit code of a training run that diverged: a result, not a failure
POLL_SECONDS = 0.2

Command = Callable[[Path], Sequence[str]]
Failure = dict[str, Any]
"""As failure.json has it: exit_code, reason, log."""


@dataclass
class Running:
    """A trial at work; `since` in seconds of the monotonic clock."""

    trial: Trial
    process: TrialProcess
    since: float


def run_trials(
    study: Study, pending: Sequence[Trial], at_once: int, command: Command, display: Display
) -> dict[Trial, Failure]:
    """Run the trials, `at_once` at a time, and end the hopeless ones; returns what failed.

    Interrupted, it ends every process it started before it raises.
    """
    waiting, running, failures = list(pending), list[Running](), dict[Trial, Failure]()
    ended = [trial for trial in study.trials if has_ended(trial)]
    watch = Watch(study.stopping, ended) if study.stopping is not None else None
    try:
        while waiting or running:
            while waiting and len(running) < at_once:
                running.append(_start(study, waiting.pop(0), command, watch))
                display.started(running[-1].trial)
            time.sleep(POLL_SECONDS)
            for entry in list(running):
                exit_code = entry.process.poll()
                if exit_code is None:
                    display.running(entry.trial, last_metrics(entry.trial.config.run_dir))
                    stopped = watch.look(entry.trial) if watch is not None else None
                    if stopped is None:
                        continue
                    _stop(entry, stopped)
                running.remove(entry)
                failure = _failure(study, entry.trial, exit_code)
                if failure is not None:
                    failures[entry.trial] = failure
                seconds = time.monotonic() - entry.since
                display.ended(entry.trial, *_outcome(entry.trial, failure, seconds))
    finally:
        with _uninterrupted():
            for entry in running:
                entry.process.stop()
                mark_failed(entry.trial.config, entry.trial.config.run_dir)
    return failures


def _start(study: Study, trial: Trial, command: Command, watch: Watch | None) -> Running:
    run_dir = trial.config.run_dir
    mark_failed(trial.config, run_dir)  # an earlier sweep may have died before it could
    (run_dir / FAILURE).unlink(missing_ok=True)
    if watch is not None:
        watch.begin(trial, time.time())
    out, err = logs(study, trial)
    process = TrialProcess(command(trial_config(study, trial.config.run.name)), out, err)
    return Running(trial, process, time.monotonic())


def _stop(entry: Running, stopped: Stopped) -> None:
    """End a hopeless trial. Its run folder says so first: a run that finds it there ends as stopped, not as failed."""
    config = entry.trial.config
    write_json(config.run_dir / STOPPED, asdict(stopped))
    entry.process.stop()
    if (config.run_dir / SUMMARY).exists():  # it was faster: a result of its own
        (config.run_dir / STOPPED).unlink()
    else:
        mark_stopped(config, config.run_dir, stopped.reason)


def _failure(study: Study, trial: Trial, exit_code: int | None) -> Failure | None:
    """None for a result (diverged or stopped early included); else what went wrong, also written to failure.json."""
    run_dir = trial.config.run_dir
    if (run_dir / STOPPED).exists() or (exit_code in (None, 0, DIVERGED) and (run_dir / SUMMARY).exists()):
        return None
    log = logs(study, trial)[1]
    lines = [line.strip() for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    reason = lines[-1] if lines else f"it wrote no {SUMMARY} and nothing to stderr"
    failure = {"exit_code": exit_code, "reason": reason, "log": str(log)}
    run_dir.mkdir(parents=True, exist_ok=True)
    write_json(run_dir / FAILURE, failure)
    mark_failed(trial.config, run_dir)
    return failure


def _outcome(trial: Trial, failure: Failure | None, seconds: float) -> tuple[str, str]:
    """One trial's end in words, and the colour of the line."""
    if failure is not None:
        return f"failed (exit code {failure['exit_code']}): {failure['reason']}", "red"
    stopped = read_stopped(trial.config.run_dir)
    if stopped is not None:
        return f"stopped at step {stopped['step']}: {stopped['reason']}  {seconds:.0f} s", "yellow"
    summary = read_summary(trial.config.run_dir)
    assert summary is not None, "a trial without failure has a summary"
    if summary["status"] == "diverged":
        return f"diverged at step {summary['steps']}  {seconds:.0f} s", "yellow"
    words = [f"val loss {summary['val_loss']:.3f}"]
    if summary.get("entropy_ratio") is not None:
        words.append(f"entropy {summary['entropy_ratio']:.0%}  max logit {summary['max_logit']:,.0f}")
    return "  ".join([*words, f"{seconds:.0f} s"]), ""


@contextlib.contextmanager
def _uninterrupted() -> Iterator[None]:
    """An impatient second Ctrl-C must not stop the ending of the trials."""
    before = {number: signal.signal(number, signal.SIG_IGN) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
