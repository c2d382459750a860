"""What a sweep shows: a line per ended trial and, on a terminal, a bar over trials and one per running trial."""

from types import TracebackType
from typing import Any, Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from comparison.study import Trial


class Display:
    """Progress of a sweep. Not on a terminal (a log file, CI): only the lines."""

    def __init__(self, console: Console, total: int, done: int) -> None:
        self._console, self._total, self._done = console, total, done
        self._tasks: dict[Trial, TaskID] = {}
        self._bars = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TextColumn("{task.fields[note]}", style="dim"),
            TimeRemainingColumn(compact=True),
            console=console,
            disable=not console.is_terminal,
            transient=True,
        )
        self._overall = self._bars.add_task("[bold]trials[/bold]", total=total, completed=done, note="")

    def __enter__(self) -> Self:
        self._bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bars.stop()

    def started(self, trial: Trial) -> None:
        self._tasks[trial] = self._bars.add_task(trial.label, total=trial.config.training.steps, note="starting")

    def running(self, trial: Trial, metrics: dict[str, Any] | None) -> None:
        if metrics is not None and "loss" in metrics:
            note = f"loss {metrics['loss']:.3f}  {metrics.get('tokens_per_s', 0):,.0f} tokens/s"
            self._bars.update(self._tasks[trial], completed=metrics["step"], note=note)

    def ended(self, trial: Trial, outcome: str, style: str = "") -> None:
        self._bars.remove_task(self._tasks.pop(trial))
        self._done += 1
        self._bars.update(self._overall, completed=self._done)
        count = f"{self._done:>{len(str(self._total))}}/{self._total}"
        self._bars.console.print(f"{count}  {trial.label}  {outcome}", style=style, highlight=False, soft_wrap=True)
