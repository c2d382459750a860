"""What benchmarks share: the machine's name, steps timed in turn, medians and quartiles, JSON and a table.

A machine is not steady to a hundredth over minutes, so things that are compared are timed in turn, one step of each at
a time, and compared pair by pair.
"""

import json
import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

import torch
from rich.console import Console
from rich.table import Table


@dataclass(frozen=True)
class Timing:
    """Seconds of each repeat of one step: on the clock, and of this process's CPU time (all its threads)."""

    wall: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)

    @property
    def median(self) -> float:
        """Median seconds on the clock."""
        return statistics.median(self.wall)

    @property
    def quartiles(self) -> tuple[float, float]:
        """First and third quartile of the seconds on the clock."""
        return quartiles(self.wall)


def quartiles(values: Sequence[float]) -> tuple[float, float]:
    """First and third quartile; of one value, itself."""
    if len(values) == 1:
        return values[0], values[0]
    first, _, third = statistics.quantiles(values, n=4, method="inclusive")
    return first, third


def ratio(a: Timing, b: Timing, clock: Literal["wall", "cpu"] = "wall") -> tuple[float, float, float]:
    """Median, first and third quartile of a / b, repeat by repeat: what disturbs one pair disturbs no other."""
    pairs = [x / y for x, y in zip(getattr(a, clock), getattr(b, clock), strict=True)]
    return (statistics.median(pairs), *quartiles(pairs))


def interleave(steps: Mapping[str, Callable[[], object]], repeats: int, warmup: int = 2) -> dict[str, Timing]:
    """Time one call of each step in turn, `repeats` times over, each time starting with another of them.

    `warmup` calls of each come first and are not timed. A step that works on a device must wait for it itself.
    """
    for _ in range(warmup):
        for step in steps.values():
            step()
    timings = {name: Timing() for name in steps}
    names = list(steps)
    for repeat in range(repeats):
        first = repeat % len(names)
        for name in names[first:] + names[:first]:
            busy, started = time.process_time(), time.perf_counter()
            steps[name]()
            timings[name].wall.append(time.perf_counter() - started)
            timings[name].cpu.append(time.process_time() - busy)
    return timings


def machine() -> dict[str, str]:
    """What a figure was measured on: processor, cores and threads of this process, versions, date."""
    found = {
        "cpu": _cpu_model(),
        "cores": str(len(os.sched_getaffinity(0))),
        "threads": str(torch.get_num_threads()),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
    }
    if torch.cuda.is_available():
        found |= {"gpu": torch.cuda.get_device_name(), "gpus": str(torch.cuda.device_count())}
    return found


def _cpu_model() -> str:
    information = Path("/proc/cpuinfo")
    lines = information.read_text().splitlines() if information.exists() else []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor() or platform.machine())


def save(path: Path, name: str, rows: list[dict[str, Any]], **more: Any) -> None:
    """Write the rows of benchmark `name` as JSON, with the machine and whatever else belongs to them."""
    path.parent.mkdir(parents=True, exist_ok=True)
    content = {"benchmark": name, "machine": machine(), **more, "rows": rows}
    path.write_text(json.dumps(content, indent=1) + "\n")


def table(title: str, rows: Sequence[Mapping[str, object]]) -> Table:
    """Rows as a table: a column per key of any of them; floats with four digits, None or nothing as a dash."""
    made = Table(title=title)
    columns = list({column: None for row in rows for column in row})
    for column in columns:
        made.add_column(column, justify="left" if isinstance(rows[0].get(column), str) else "right")
    for row in rows:
        made.add_row(*(_cell(row.get(column)) for column in columns))
    return made


def console() -> Console:
    """Where tables go: a terminal as wide as it is, a file wide enough for any of them."""
    terminal = Console(highlight=False)
    return terminal if terminal.is_terminal else Console(highlight=False, width=220)


def _cell(value: object) -> str:
    if value is None:
        return "-"
    return f"{value:.4g}" if isinstance(value, float) else str(value)
