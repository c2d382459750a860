"""`steadytrain sweep`: run the trials of a study, some at a time, and go on where an earlier sweep stopped.

Study folder, `<run.dir>/<study name>/`:
    study.yaml                                the resolved study
    configs/<recipe>/lr-<lr>/seed-<seed>.yaml what each trial runs
    trials/<recipe>/lr-<lr>/seed-<seed>/      the run folders
    logs/<recipe>/lr-<lr>/seed-<seed>.{out,err}
    report.html, *.png                        written at the end (and by `steadytrain compare`)

A trial is finished when its run folder holds summary.json: finished ones are kept, half-finished ones start again.
"""

import contextlib
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from rich.console import Console

from comparison import report
from comparison.analysis import StudyResult, analyse
from comparison.display import Display
from comparison.processes import TrialProcess
from comparison.record import FAILURE, record_of, trial_config, write_record
from comparison.study import Study, Trial, load_study
from configs.errors import ConfigError, LaunchError
from configs.flatten import flatten
from configs.load import dump, load
from configs.schema import Config
from data.workers import available_cores
from monitoring.mlflow_store import default_uri, mark_failed
from monitoring.recorder import SUMMARY, last_metrics, read_summary, write_json
from monitoring.style import lr_text
from monitoring.tracker import NoTracker, Tracker

DIVERGED = 3  # the exit code of a training run that diverged: a result, not a failure
POLL_SECONDS = 0.2

Command = Callable[[Path], Sequence[str]]


def train_command(config: Path) -> list[str]:
    """The command that runs one trial."""
    return [sys.executable, "-m", "launcher", "train", str(config), "--overwrite"]


def sweep(
    path: Path,
    overrides: Sequence[str] = (),
    *,
    jobs: int | None = None,
    command: Command = train_command,
    console: Console | None = None,
) -> Path:
    """Run what is left of a study and write its report. Returns the study folder.

    `jobs` trials run at once; default: as many as the cores allow, at least one. Interrupted (Ctrl-C, SIGTERM), it
    ends every process it started before it returns.

    Raises:
        ConfigError: a wrong study file, or one that no longer says what a finished trial ran.
        LaunchError: some trials failed (the others were run), or another sweep is at work on the study.
    """
    console = console or Console()
    study = load_study(path, overrides)
    try:
        study.dir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"run.dir = {study.base.run.dir}: cannot write {study.dir}: {error.strerror}") from None
    with alone(study), _sigterm_interrupts():
        pending = unfinished(study)
        at_once = jobs or max(1, available_cores() // _processes(study))
        _announce(console, study, len(study.trials) - len(pending), at_once)
        with study_run(study) as tracker:
            pending = prepare(study, pending, tracker)
            with Display(console, len(study.trials), len(study.trials) - len(pending)) as display:
                failures = _run(study, pending, min(at_once, len(pending)), command, display)
            if len(failures) < len(study.trials):
                console.print("drawing the report")
                conclude(study.dir, study.base.training.steps, tracker)
            if failures:
                raise LaunchError(_failed(study, failures))  # inside: the study's MLflow run has failed too
    return study.dir


def conclude(study_dir: Path, steps: int, tracker: Tracker | NoTracker) -> None:
    """Write the report of what has results, and log the study's own numbers."""
    report.write(study_dir)
    tracker.log(steps, study_metrics(analyse(study_dir)))


def study_metrics(result: StudyResult) -> dict[str, float]:
    """The study's own numbers, for its MLflow run: one metric per recipe and quantity."""
    metrics = {}
    for name, recipe in result.recipes.items():
        metrics[f"best_loss/{name}"] = recipe.best_loss.mean
        metrics[f"best_lr/{name}"] = recipe.best_lr
        metrics[f"lr_sensitivity/{name}"] = recipe.lr_sensitivity.mean
        metrics[f"plateau_decades/{name}"] = recipe.plateau_decades
        metrics[f"collapsed_trials/{name}"] = float(len(recipe.collapsed))
    return metrics


@dataclass
class Running:
    """A trial at work; `since` in seconds of the monotonic clock."""

    trial: Trial
    process: TrialProcess
    since: float


def _run(
    study: Study, pending: Sequence[Trial], at_once: int, command: Command, display: Display
) -> dict[Trial, dict[str, Any]]:
    """Run the trials; returns what failed."""
    waiting, running, failures = list(pending), list[Running](), dict[Trial, dict[str, Any]]()
    try:
        while waiting or running:
            while waiting and len(running) < at_once:
                running.append(_start(study, waiting.pop(0), command))
                display.started(running[-1].trial)
            time.sleep(POLL_SECONDS)
            for entry in list(running):
                exit_code = entry.process.poll()
                if exit_code is None:
                    display.running(entry.trial, last_metrics(entry.trial.config.run_dir))
                    continue
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


def _start(study: Study, trial: Trial, command: Command) -> Running:
    run_dir = trial.config.run_dir
    mark_failed(trial.config, run_dir)  # an earlier sweep may have died before it could
    (run_dir / FAILURE).unlink(missing_ok=True)
    out, err = _logs(study, trial)
    return Running(trial, TrialProcess(command(trial_config(study, trial.config.run.name)), out, err), time.monotonic())


def _failure(study: Study, trial: Trial, exit_code: int) -> dict[str, Any] | None:
    """None for a result (diverged included); else what went wrong, also written to the trial's failure.json."""
    run_dir = trial.config.run_dir
    if exit_code in (0, DIVERGED) and (run_dir / SUMMARY).exists():
        return None
    log = _logs(study, trial)[1]
    lines = [line.strip() for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    reason = lines[-1] if lines else f"it wrote no {SUMMARY} and nothing to stderr"
    failure = {"exit_code": exit_code, "reason": reason, "log": str(log)}
    run_dir.mkdir(parents=True, exist_ok=True)
    write_json(run_dir / FAILURE, failure)
    mark_failed(trial.config, run_dir)
    return failure


def _outcome(trial: Trial, failure: dict[str, Any] | None, seconds: float) -> tuple[str, str]:
    """One trial's end in words, and the colour of the line."""
    if failure is not None:
        return f"failed (exit code {failure['exit_code']}): {failure['reason']}", "red"
    summary = read_summary(trial.config.run_dir)
    assert summary is not None, "a trial without failure has a summary"
    if summary["status"] == "diverged":
        return f"diverged at step {summary['steps']}  {seconds:.0f} s", "yellow"
    words = [f"val loss {summary['val_loss']:.3f}"]
    if summary.get("entropy_ratio") is not None:
        words.append(f"entropy {summary['entropy_ratio']:.0%}  max logit {summary['max_logit']:,.0f}")
    return "  ".join([*words, f"{seconds:.0f} s"]), ""


def is_finished(study: Study, trial: Trial) -> bool:
    """Whether the trial has a result. Raises: ConfigError if the result is of another configuration."""
    if not (trial.config.run_dir / SUMMARY).exists():
        return False
    path = trial_config(study, trial.config.run.name)
    if not path.exists():
        raise ConfigError(f"{path}: is gone, so what {trial.config.run_dir} ran is unknown; delete {study.dir}")
    then, now = _settings(load(path)), _settings(trial.config)
    for key, value in now.items():
        if then.get(key) != value:
            raise ConfigError(
                f"{study.path}: {key} = {value}: the finished trial {trial.config.run_dir} ran with {then.get(key)}; "
                f"give the study another name, or delete {study.dir}"
            )
    return True


def _settings(config: Config) -> dict[str, Any]:
    """A trial's dotted keys, without where it is tracked."""
    return dict(flatten(config.model_dump(mode="json", exclude={"tracking"})))


def unfinished(study: Study) -> list[Trial]:
    """The trials without a result. Raises: ConfigError if a result is of another configuration."""
    return [trial for trial in study.trials if not is_finished(study, trial)]


def prepare(study: Study, pending: Sequence[Trial], tracker: Tracker | NoTracker) -> list[Trial]:
    """Write study.yaml and the configurations of the trials to run, as children of the study's MLflow run."""
    tracking = study.base.tracking
    uri = tracking.uri
    if tracking.kind == "mlflow" and uri is None and "MLFLOW_TRACKING_URI" not in os.environ:
        uri = default_uri(study.base.run.dir)  # the trials' own default would be a store inside the study folder
    write_record(record_of(study, uri), study.dir)
    prepared = [trial.tracked_under(uri, tracker.run_id()) for trial in pending]
    for trial in prepared:
        path = trial_config(study, trial.config.run.name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(dump(trial.config), encoding="utf-8")
    return prepared


@contextlib.contextmanager
def study_run(study: Study) -> Iterator[Tracker | NoTracker]:
    """The study's own MLflow run, parent of its trials' runs; failed if the sweep is interrupted or breaks."""
    tracker = open_study_run(study.base, study.name, study.dir)
    try:
        yield tracker
    except BaseException:
        tracker.close("failed")
        raise
    tracker.close("finished")


def open_study_run(base: Config, name: str, study_dir: Path) -> Tracker | NoTracker:
    """The study's MLflow run, begun or gone on with."""
    run = base.run.model_copy(update={"name": name})
    return Tracker.open(base.model_copy(update={"run": run}), study_dir)


@contextlib.contextmanager
def alone(study: Study) -> Iterator[None]:
    """Hold the study's place. Raises: LaunchError if another sweep has it."""
    try:
        with FileLock(study.dir / ".lock", timeout=0):
            yield
    except Timeout:
        raise LaunchError(f"{study.dir}: another sweep is running this study; wait for it or end it") from None


@contextlib.contextmanager
def _sigterm_interrupts() -> Iterator[None]:
    """SIGTERM ends a sweep as Ctrl-C does, so that its trials end too."""

    def interrupt(number: int, frame: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@contextlib.contextmanager
def _uninterrupted() -> Iterator[None]:
    """An impatient second Ctrl-C must not stop the ending of the trials."""
    before = {number: signal.signal(number, signal.SIG_IGN) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _announce(console: Console, study: Study, finished: int, at_once: int) -> None:
    recipes, rates, seeds = len(study.recipes), len(study.learning_rates), len(study.seeds)
    counts = f"{recipes} recipes x {rates} learning rates x {seeds} seed{'s' if seeds > 1 else ''}"
    kept = f", {finished} already finished" if finished else ""
    console.print(
        f"Study {study.name}: {len(study.trials)} trials ({counts}){kept}, {at_once} at a time, in {study.dir}",
        highlight=False,
        soft_wrap=True,
    )


def _failed(study: Study, failures: dict[Trial, dict[str, Any]]) -> str:
    trial, failure = next(iter(failures.items()))
    first = f"{trial.recipe} at lr {lr_text(trial.lr)}, seed {trial.seed} (exit code {failure['exit_code']})"
    return (
        f"{study.dir}: {len(failures)} of {len(study.trials)} trials failed, the first {first}: {failure['reason']}; "
        f"see {failure['log']}; the same command tries them again"
    )


def _logs(study: Study, trial: Trial) -> tuple[Path, Path]:
    """Files of the trial's stdout and stderr."""
    base = study.dir / "logs" / trial.config.run.name
    return base.with_name(base.name + ".out"), base.with_name(base.name + ".err")


def _processes(study: Study) -> int:
    """Processes of one trial."""
    parallel = study.base.parallel
    return parallel.tp * parallel.pp * (parallel.dp or 1)
