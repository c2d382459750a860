"""`steadytrain sweep`: run the trials of a study, some at a time, and go on where an earlier sweep stopped.

Study folder, `<run.dir>/<study name>/`, <trial> being `<recipe>[/<shape>]/lr-<lr>/seed-<seed>`:
    study.yaml                  the resolved study
    configs/<trial>.yaml        what each trial runs
    trials/<trial>/             the run folders
    logs/<trial>.{out,err}
    report.html, *.png          written at the end (and by `steadytrain compare`)

A trial has ended when its run folder holds summary.json, or stopped.json of one that was hopeless: those are kept.
Half-finished ones go on from their checkpoints, and without any start again.
"""

import contextlib
import signal
from collections.abc import Iterator, Sequence
from pathlib import Path

from filelock import FileLock, Timeout
from rich.console import Console

from comparison import report
from comparison.analysis import analyse
from comparison.display import Display
from comparison.metrics import study_metrics
from comparison.plan import counts
from comparison.runner import Command, Failure, run_trials
from comparison.selection import ALL, Selection
from comparison.study import Study, Trial, load_study
from comparison.trials import has_ended, prepare, processes, train_command, unfinished
from configs.errors import ConfigError, LaunchError
from configs.schema import Config
from data.workers import available_cores
from monitoring.style import lr_text
from monitoring.tracker import NoTracker, Tracker


def sweep(
    path: Path,
    overrides: Sequence[str] = (),
    *,
    jobs: int | None = None,
    only: Selection = ALL,
    command: Command = train_command,
    console: Console | None = None,
) -> Path:
    """Run what is left of a study and write its report. Returns the study folder.

    `jobs` trials run at once; default: as many as the cores allow, at least one. `only`: the part of the study to run
    now. Interrupted (Ctrl-C, SIGTERM), it ends every process it started before it returns.

    Raises:
        ConfigError: a wrong study file or `only`, or a study that no longer says what a finished trial ran.
        LaunchError: some trials failed (the others were run), or another sweep is at work on the study.
    """
    console = console or Console()
    study = load_study(path, overrides)
    asked = only.of(study)
    try:
        study.dir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"run.dir = {study.base.run.dir}: cannot write {study.dir}: {error.strerror}") from None
    with alone(study), _sigterm_interrupts():
        pending = unfinished(study, asked)
        kept = len(asked) - len(pending)
        at_once = jobs or max(1, available_cores() // max(processes(trial.config) for trial in asked))
        _announce(console, study, len(asked), kept, at_once)
        with study_run(study) as tracker:
            pending = prepare(study, pending, tracker)
            with Display(console, len(asked), kept) as display:
                failures = run_trials(study, pending, min(at_once, len(pending)), command, display)
            if any(has_ended(trial) for trial in study.trials):
                console.print("drawing the report")
                conclude(study.dir, study.base.training.steps, tracker)
            if failures:
                raise LaunchError(_failed(study, len(asked), failures))  # inside: the study's MLflow run has failed too
    return study.dir


def conclude(study_dir: Path, steps: int, tracker: Tracker | NoTracker) -> None:
    """Write the report of what has results, and log the study's own numbers."""
    analysis = analyse(study_dir)
    report.write(analysis)
    tracker.log(steps, study_metrics(analysis))


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


def _announce(console: Console, study: Study, asked: int, kept: int, at_once: int) -> None:
    some = f", {asked} of them now" if asked < len(study.trials) else ""
    some += f", {kept} already finished" if kept else ""
    console.print(
        f"Study {study.name}: {len(study.trials)} trials ({counts(study)}){some}, {at_once} at a time, in {study.dir}",
        highlight=False,
        soft_wrap=True,
    )


def _failed(study: Study, asked: int, failures: dict[Trial, Failure]) -> str:
    trial, failure = next(iter(failures.items()))
    shape = f" in shape {trial.shape}" if trial.shape else ""
    first = f"{trial.recipe}{shape} at lr {lr_text(trial.lr)}, seed {trial.seed} (exit code {failure['exit_code']})"
    return (
        f"{study.dir}: {len(failures)} of {asked} trials failed, the first {first}: {failure['reason']}; "
        f"see {failure['log']}; the same command tries them again"
    )
