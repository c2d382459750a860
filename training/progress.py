"""Where a run stands: a bar on a terminal, a line now and then elsewhere."""

import sys
import time
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

SECONDS_BETWEEN_LINES = 10.0


class TrainingProgress:
    """Shows loss, attention entropy, tokens/s, MFU where known, and the time left; silent on ranks that do not log."""

    def __init__(self, name: str, steps: int, *, enabled: bool) -> None:
        self._name, self._steps, self._enabled = name, steps, enabled
        self._console = Console(file=sys.stderr, highlight=False, markup=False, emoji=False)  # paths may hold brackets
        self._live: Progress | None = None
        self._last_line = time.monotonic()

    def __enter__(self) -> "TrainingProgress":
        if self._enabled and self._console.is_terminal:
            self._live = Progress(
                TextColumn("[bold]{task.description}"),
                BarColumn(bar_width=12),  # the rest then fits 80 columns
                MofNCompleteColumn(),
                TextColumn("{task.fields[status]}"),
                TimeRemainingColumn(compact=True),
                console=self._console,
            )
            self._live.start()
            self._task = self._live.add_task(self._name, total=self._steps, status="")
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self._live is not None:
            self._live.stop()

    def say(self, line: str) -> None:
        """A line of its own, above the bar."""
        if self._enabled:
            (self._live.console if self._live else self._console).print(line, soft_wrap=True)

    def update(
        self, step: int, loss: float, tokens_per_s: float, entropy_ratio: float | None, mfu: float | None
    ) -> None:
        """After update `step` (from 1)."""
        if not self._enabled:
            return
        entropy = "" if entropy_ratio is None else f"  entropy {entropy_ratio:.0%}"
        utilisation = "" if mfu is None else f"  MFU {mfu:.0%}"
        status = f"loss {loss:.3f}{entropy}  {tokens_per_s:,.0f} tok/s{utilisation}"
        if self._live is not None:
            self._live.update(self._task, completed=step, status=status)
        elif step == self._steps or time.monotonic() - self._last_line > SECONDS_BETWEEN_LINES:
            self._last_line = time.monotonic()
            self._console.print(f"{self._name}  step {step}/{self._steps}  {status}")
