"""Where the time of a step goes: a stopwatch of nested parts. Each second is charged to the innermost part alone.

So the parts of a lap add up to it: a reduction inside a backward pass is communication and not backward.
"""

import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from itertools import pairwise
from typing import Any, Literal, ParamSpec, Protocol, TypeVar, get_args

import torch

Part = Literal[
    "data",
    "forward",
    "backward",
    "pipeline_wait",
    "communication",
    "optimizer",
    "refresh",
    "monitoring",
    "evaluation",
    "checkpoint",
    "other",
]
PARTS: tuple[Part, ...] = get_args(Part)
"""`pipeline_wait`: a schedule's step without what its stages compute; `refresh`: sigmaReparam at the step's boundary;
`other`: what no part claims."""

P = ParamSpec("P")
R = TypeVar("R")
_UNTIMED: AbstractContextManager[None] = nullcontext()


class Clock:
    """Times nothing: the clock of ranks that do not log, and what the others have in common with it."""

    def part(self, name: Part) -> AbstractContextManager[None]:
        """Charge the time inside the block to `name`, save for what blocks within it claim."""
        return _UNTIMED

    def lap(self) -> dict[Part, float] | None:
        """End a lap, outside of all parts, and begin the next. Returns seconds by part; None where none are known."""
        return None

    def restart(self) -> None:
        """Begin a lap, outside of all parts: what was before it is in none."""


SILENT = Clock()


class HostClock(Clock):
    """Times what this process does: right where operations have ended when their call returns, as on a CPU."""

    def __init__(self, now: Callable[[], float] = time.perf_counter) -> None:
        self._now = now
        self._current: Part = "other"
        self._outer: list[Part] = []
        self._blocks = {name: _Block(self, name) for name in PARTS}
        self._spent = dict.fromkeys(PARTS, 0.0)
        self._since = now()

    def part(self, name: Part) -> AbstractContextManager[None]:
        # Nothing of it may end up in a compiled layer, which has one time.
        return _UNTIMED if torch.compiler.is_compiling() else self._blocks[name]

    def lap(self) -> dict[Part, float] | None:
        assert not self._outer, "a lap ends outside of all parts"
        self._charge()
        spent, self._spent = self._spent, dict.fromkeys(PARTS, 0.0)
        return spent

    def restart(self) -> None:
        self.lap()

    def begin(self, name: Part) -> None:
        """Enter a part; left by `end`."""
        self._charge()
        self._outer.append(self._current)
        self._current = name

    def end(self) -> None:
        """Leave the part entered last."""
        self._charge()
        self._current = self._outer.pop()

    def _charge(self) -> None:
        """Give the time since the last call to the part that it was spent in."""
        now = self._now()
        self._spent[self._current] += now - self._since
        self._since = now


class Event(Protocol):
    """A point in a device's queue (`torch.cuda.Event`)."""

    def record(self) -> Any: ...
    def query(self) -> bool: ...
    def elapsed_time(self, end_event: Any) -> float: ...


class DeviceClock(HostClock):
    """Times what a device does, between events in its queue, without ever waiting for it.

    A lap's events are read when the next lap ends, by when a step has read its loss and so has waited for them all:
    `lap` returns the lap before the one that it ends, and None after the first.
    """

    def __init__(self, make: Callable[[], Event]) -> None:
        """`make`: an event that can be timed."""
        self._make = make
        self._free: list[Event] = []
        self._marks: list[tuple[Part, Event]] = []  # (part that ended, when); the first one is where the lap began
        self._finished: list[tuple[Part, Event]] = []
        super().__init__(now=lambda: 0.0)
        self._charge()

    def lap(self) -> dict[Part, float] | None:
        assert not self._outer, "a lap ends outside of all parts"
        self._charge()
        finished, self._finished = self._finished, self._marks
        self._marks = [self._marks[-1]]
        if not finished:
            return None
        spent = dict.fromkeys(PARTS, 0.0) if finished[-1][1].query() else None  # never wait
        for (_, start), (name, stop) in pairwise(finished):
            if spent is not None:
                spent[name] += start.elapsed_time(stop) / 1000
        # The last event is where the lap after it begins: not free yet.
        self._free += [event for _, event in finished[:-1]]
        return spent

    def restart(self) -> None:
        assert not self._outer, "a lap begins outside of all parts"
        self._charge()
        self._finished, self._marks = [], self._marks[-1:]

    def _charge(self) -> None:
        event = self._free.pop() if self._free else self._make()
        event.record()
        self._marks.append((self._current, event))


class _Block:
    """A part of a clock as a context manager, made once: entering it a million times allocates nothing."""

    __slots__ = ("_clock", "_name")

    def __init__(self, clock: HostClock, name: Part) -> None:
        self._clock, self._name = clock, name

    def __enter__(self) -> None:
        self._clock.begin(self._name)

    def __exit__(self, *error: object) -> None:
        self._clock.end()


def timed(clock: Clock, name: Part, function: Callable[P, R]) -> Callable[P, R]:
    """`function` with its time charged to a part."""
    if clock is SILENT:
        return function

    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        with clock.part(name):
            return function(*args, **kwargs)

    return call


def clock_for(device: torch.device) -> Clock:
    """A clock of what runs on `device`."""
    if device.type == "cuda":
        return DeviceClock(lambda: torch.cuda.Event(enable_timing=True))
    return HostClock()
