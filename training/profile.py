"""A trace of a few steps by torch's profiler: one file per rank, and a table of where the time went."""

import os
from types import TracebackType
from typing import Self

import torch
from torch.profiler import ProfilerActivity, profile

from configs.schema import Config
from parallel.topology import Topology

FOLDER = "profile"
WARMED_UP = 10
"""The step of a start that is traced first by default: allocators and caches have settled."""
ROWS = 15


def steps_to_trace(config: Config, done: int) -> range:
    """The steps (from 1) to trace of a run that goes on after `done`; none where they are done or nothing is wanted."""
    wanted, last = config.profile, config.training.steps
    if not wanted.enabled or done >= last:
        return range(0)
    if wanted.first is not None:
        return range(max(wanted.first, done + 1), wanted.first + wanted.steps)
    count = min(wanted.steps, last - done)
    first = max(done + 1, min(done + WARMED_UP, last - count + 1))
    return range(first, first + count)


class Profiler:
    """Traces some steps of the loop on this rank; costs nothing outside of them.

    To be entered around the loop and told by `before` of every step. It writes its trace when the steps are over, or
    when the loop is left; then the logging rank says on stdout where traces are and which operations took most time.
    """

    def __init__(self, config: Config, topology: Topology, done: int) -> None:
        """`done`: steps of the run so far."""
        self._folder = config.run_dir / FOLDER
        self._path = self._folder / f"rank-{topology.rank}.json.gz"
        self._tells = config.profile.enabled and topology.is_logging_rank
        self._on_cuda = topology.device.type == "cuda"
        self._steps = steps_to_trace(config, done)
        self._running: profile | None = None
        self._traced: list[int] = []
        self._outcome = "no step was traced: those asked for were done before this start, or not reached"

    def before(self, step: int) -> None:
        """To be called before `step` (from 1) begins; steps that a rollback repeats are not traced again."""
        if not self._steps:
            return
        if self._running is not None and (step not in self._steps or step <= self._traced[-1]):
            self._finish()  # the steps are over, or a rollback repeats them
        elif self._running is None and step == self._steps[0]:
            activities = [ProfilerActivity.CPU] + ([ProfilerActivity.CUDA] if self._on_cuda else [])
            os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # it would tell stderr that it starts and stops
            self._running = profile(activities=activities)
            self._running.start()
        if self._running is not None:
            self._traced.append(step)

    def _finish(self, *, wait: bool = True) -> None:
        """Write the trace; a disk that is full costs the trace, not the run. After an error there is no `wait`."""
        assert self._running is not None
        if self._on_cuda and wait:
            torch.cuda.synchronize()  # what the steps have queued belongs to them
        traced, self._running = self._running, None
        traced.stop()
        self._steps = range(0)
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            traced.export_chrome_trace(str(self._path))
        except OSError as error:
            self._outcome = f"the trace could not be written: {self._path}: {error.strerror}"
            return
        self._outcome = (
            f"{self._table(traced)}\nprofile of steps {self._traced[0]} to {self._traced[-1]}: "
            f"{self._folder}/rank-N.json.gz, N = 0 for this table; open one in https://ui.perfetto.dev or "
            "chrome://tracing"
        )

    def _table(self, traced: profile) -> str:
        if not self._tells:
            return ""
        by = "self_device_time_total" if self._on_cuda else "self_cpu_time_total"
        return traced.key_averages().table(sort_by=by, row_limit=ROWS, max_name_column_width=40)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self._running is not None:
            self._finish(wait=kind is None)
        if self._tells and kind is None:
            print(self._outcome)  # noqa: T201 (asked for on the command line)
