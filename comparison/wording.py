"""How numbers and lists are written in verdict, tables and report."""

import math
from collections.abc import Iterable

from comparison.analysis import StudyResult
from comparison.trial_result import TrialResult
from monitoring.style import lr_text

MANY = 4
"""A sentence that would go through more recipes than this names them without their numbers, which the table has."""


def listed(items: Iterable[str]) -> str:
    """`a, b and c`."""
    *first, last = list(items)
    return f"{', '.join(first)} and {last}" if first else last


def some(names: list[str]) -> str:
    """The names, or how many where they are too many for a sentence."""
    return listed(names) if len(names) <= 2 * MANY else f"{len(names)} recipes (the tables name them)"


def rates(learning_rates: Iterable[float]) -> str:
    """Learning rates in ascending order: `1e-2 and 3e-2`."""
    return listed(lr_text(lr) for lr in sorted(set(learning_rates)))


def percent(ratio: float) -> str:
    """`28 %`; `-` for nan."""
    return "-" if math.isnan(ratio) else f"{100 * ratio:.0f} %"


def big(value: float) -> str:
    """Three figures, and letters for what is larger: 63, 4.2k, 3.1M."""
    if math.isnan(value):
        return "-"
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size and math.isfinite(value):
            return f"{value / size:.3g}{letter}"
    return f"{value:.3g}"


def memory(size: float) -> str:
    """Bytes as MiB or GiB; `-` for nan."""
    if math.isnan(size):
        return "-"
    return f"{size / 2**30:.1f} GiB" if size >= 2**30 else f"{size / 2**20:.0f} MiB"


def span(low: float, high: float) -> str:
    """A range of learning rates."""
    return lr_text(low) if low == high else f"{lr_text(low)} to {lr_text(high)}"


def steps_of(steps: Iterable[int | None]) -> str:
    """`step 65`, or `steps 65 to 80`."""
    known = sorted(step for step in steps if step is not None)
    return f"step {known[0]}" if known[0] == known[-1] else f"steps {known[0]} to {known[-1]}"


def collapse_steps(trials: Iterable[TrialResult]) -> str:
    """When the attention of these trials collapsed."""
    return steps_of(trial.collapse_step for trial in trials)


def seeds_of(cell: list[TrialResult], part: StudyResult) -> str:
    """`, 2 of 3 seeds`; nothing where there is one seed."""
    return "" if part.single_seed else f", {len(cell)} of {len(part.of(cell[0].recipe, cell[0].lr))} seeds"
