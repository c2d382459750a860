"""The progress bar of a preparation: bytes read, MB/s, time left."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.progress import Progress


class Report:
    """What a preparation tells about its progress; this one keeps silent."""

    def start(self, phase: str, total: int | None) -> None:
        """Begin a phase of `total` bytes (None: of unknown length)."""

    def advance_to(self, done: int) -> None:
        """So many bytes of the phase are done."""

    def finish(self) -> None:
        """The phase is over."""

    def say(self, line: str) -> None:
        """Something odd that the data hold and that is used all the same."""


@contextmanager
def progress_bar(*, shown: bool) -> Iterator[Report]:
    """A report drawn on the terminal (standard error), or a silent one."""
    if not shown:
        yield Report()
        return
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(elapsed_when_finished=True),
    )
    with Progress(*columns, console=Console(stderr=True)) as bar:
        yield _BarReport(bar)


class _BarReport(Report):
    def __init__(self, bar: "Progress") -> None:
        self._bar = bar

    def start(self, phase: str, total: int | None) -> None:
        self._total = total
        self._task = self._bar.add_task(phase, total=total)

    def advance_to(self, done: int) -> None:
        self._bar.update(self._task, completed=done if self._total is None else min(done, self._total))

    def finish(self) -> None:
        # Bytes read fall short of the total where max_bytes ends before a document.
        if self._total is None:
            self._bar.remove_task(self._task)
        else:
            self._bar.update(self._task, completed=self._total)

    def say(self, line: str) -> None:
        self._bar.console.print(line, markup=False, highlight=False, soft_wrap=True)
