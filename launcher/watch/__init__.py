"""`steadytrain watch`: a run in the terminal, as it goes. It reads the run's folder only, and writes nothing."""

import time
from pathlib import Path

from rich.console import Console
from rich.live import Live
from rich.text import Text

from configs.errors import ConfigError
from configs.files import parse_yaml
from launcher.jobs.job import Job
from launcher.jobs.runs import find_runs
from launcher.jobs.standing import Standing, ask_queue, job_of, own_attempts, standing
from launcher.run_folder import CONFIG
from launcher.watch.findings import Findings
from launcher.watch.frame import Plan, frame
from monitoring.crossings import detectors_of
from monitoring.history import History

SECONDS_BETWEEN_QUESTIONS = {"slurm": 5.0, "local": 1.0}
"""How often it is asked where the job stands."""
NAMED = 3
ANOTHER_ATTEMPT = ("resume", "restart")


class Watch:
    """One run under watch: `look` reads what is new and gives the frame."""

    def __init__(self, run_dir: Path) -> None:
        """Raises ConfigError if the folder is no run's."""
        self.run_dir = require_run(run_dir)
        self._history = History(run_dir)
        self._standing = Standing("unknown")
        self._job: Job | None = None
        self._asked: float | None = None
        self._findings = Findings.of(self._history, detectors_of(run_dir))
        self._measurements = 0

    @property
    def alive(self) -> bool:
        """Whether the run goes on, as of the last look."""
        return self._standing.alive

    def look(self, width: int, height: int | None) -> Text:
        """The frame of now. Raises ConfigError, DataError for damaged records of the run's job or end."""
        self._ask()
        self._history.update()
        if self._history.measurements != self._measurements:
            self._measurements = self._history.measurements
            self._findings = Findings.of(self._history, detectors_of(self.run_dir))
        return frame(
            self._plan(), self._standing, self._history, self._findings, width=width, height=height, now=time.time()
        )

    def _ask(self) -> None:
        kind = "local" if self._job is None else self._job.kind
        now = time.monotonic()
        if self._asked is None or now - self._asked >= SECONDS_BETWEEN_QUESTIONS[kind]:
            self._job = job_of(self.run_dir)
            self._standing = standing(self.run_dir, self._job, ask_queue([self._job]))
            self._asked = now

    def _plan(self) -> Plan:
        path = self.run_dir / CONFIG
        config = parse_yaml(path.read_text("utf-8"), str(path)) if path.is_file() else None
        steps = config.get("training", {}).get("steps") if isinstance(config, dict) else None
        if self._job is not None:
            attempt = len(own_attempts(self._job))
        else:
            attempt = 1 + sum(event["kind"] in ANOTHER_ATTEMPT for event in self._history.events)
        return Plan(str(self.run_dir), steps, attempt)


def watch(run_dir: Path, console: Console, *, once: bool, interval: float) -> None:
    """Show the run until it has ended; where there is no terminal, or with `once`, as it is now.

    The last frame stays on the screen. Raises ConfigError, DataError.
    """
    watched = Watch(run_dir)
    if once or not console.is_terminal:
        _print(console, watched.look(console.width, None))
        return
    shown = None
    try:
        with Live(console=console, screen=True, auto_refresh=False) as live:
            while True:
                shown = watched.look(console.width, console.height - 1)  # a line for the prompt that follows
                live.update(shown, refresh=True)
                if not watched.alive:
                    break
                time.sleep(interval)
    finally:
        if shown is not None:
            _print(console, shown)


def _print(console: Console, shown: Text) -> None:
    console.print(shown, no_wrap=True, overflow="crop", crop=False)


def require_run(path: Path) -> Path:
    """The folder. Raises ConfigError if it is not that of one run."""
    if not path.is_dir():
        known = Path("runs") / path
        meant = f"; did you mean {known}?" if known.is_dir() else "; give the folder of a run, such as runs/tiny"
        raise ConfigError(f"{path}: no such folder{meant}")
    found = find_runs([path])
    if [run.path for run in found] != [path]:
        names = ", ".join(str(run.path) for run in found[:NAMED])
        more = f" and {len(found) - NAMED} more" if len(found) > NAMED else ""
        raise ConfigError(f"{path}: is not one run but holds {len(found)}: {names}{more}; watch one of them")
    return path
