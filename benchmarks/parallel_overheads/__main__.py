"""What running in parallel costs: bubbles of the pipeline schedules beside theory, waiting, ZeRO's step, weak scaling.

    .venv/bin/python -m benchmarks.parallel_overheads
    .venv/bin/python -m benchmarks.parallel_overheads --quick
    .venv/bin/python -m benchmarks.parallel_overheads --parts bubbles --unit-ms 120

**Bubbles.** torch's schedules, through this project's `Pipeline`, on real gloo ranks. Stages *sleep* for a given time,
in forward, gradient of the input and gradient of the weights apart: they take no core, so that four ranks are not held
up by two cores; schedule, order and communication are real, the arithmetic is not. At pp = 2 they also *compute*, each
rank pinned to a core. `measured` is the part of a step (first start to last end) that a rank does not spend in its
stages, mean over ranks, median over steps; `theory` is `parallel.bubble` with the measured times of the parts. With
sleeping stages also both against the time that was asked for. A bubble of two hundredths is soon off by a tenth of
itself: a millisecond here and there is as large.

**Layouts.** `waiting` is the share of a step that a rank waits for a collective, a send or a receive to be done, the
delays of the others and thus the bubble included. ZeRO's step is given per million parameters of a rank: reduction of
the gradients when accumulation ends, and update with clipping. Weak scaling: the batch of a rank stays the same as
data-parallel ranks are added; `ideal` is what the cores allow.

Rows are printed as they are done; JSON in `--out`.
"""

import argparse
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks import harness
from benchmarks.parallel_overheads import bubbles, layouts
from benchmarks.parallel_overheads.bubbles import CHUNKS, Cell
from benchmarks.parallel_overheads.layouts import Layout

PARTS = ("bubbles", "layouts", "scaling")


def main() -> None:
    """Measure, print and save."""
    arguments = _arguments()
    console, found = harness.console(), {}
    for part in arguments.parts:
        rows = found[part] = []
        for row in {"bubbles": _bubbles, "layouts": _layouts, "scaling": _scaling}[part](arguments):
            console.print("  ".join(f"{name} {_short(value)}" for name, value in row.items()))
            rows.append(row)
            harness.save(arguments.out, "parallel_overheads", [], **found)
        console.print(harness.table(part, [{k: _short(v) for k, v in row.items()} for row in rows]))
    if "bubbles" in found:
        for line in _verdict(found["bubbles"]):
            console.print(line)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--schedules", nargs="+", choices=CHUNKS, default=list(CHUNKS))
    parser.add_argument("--pp", nargs="+", type=int, default=[2, 4])
    parser.add_argument("--micro-batches", nargs="+", type=int, default=[4, 8, 16])
    parser.add_argument("--unit-ms", type=float, default=80.0, help="a rank's forward of one micro-batch, asleep")
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--quick", action="store_true", help="few cells and steps: whether it runs, not what it finds")
    parser.add_argument("--out", type=Path, default=Path("runs/benchmarks/parallel_overheads.json"))
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.pp, arguments.micro_batches, arguments.steps, arguments.unit_ms = [2], [4], 2, 20.0
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    return arguments


def _bubbles(arguments: argparse.Namespace) -> Iterator[dict[str, Any]]:
    for pp in arguments.pp:
        for micro_batches in arguments.micro_batches:
            for schedule in arguments.schedules:
                yield bubbles.measure(Cell(schedule, pp, micro_batches, arguments.unit_ms / 1000), arguments.steps)
    for schedule in arguments.schedules:
        yield bubbles.measure(Cell(schedule, 2, arguments.micro_batches[-1], 0.0), arguments.steps)


def _verdict(rows: list[dict[str, Any]]) -> Iterator[str]:
    """Which schedules are within 15 % of theory, and whether interleaving won where theory says so."""
    within = sum(abs(row["off"]) <= 0.15 for row in rows)
    yield f"bubbles within 15 % of theory: {within} of {len(rows)} cells"
    cells = {(r["schedule"], r["stages"], r["pp"], r["micro_batches"]): r for r in rows}
    for (schedule, *place), row in cells.items():
        other = cells.get(("interleaved_1f1b", *place))
        if schedule == "1f1b" and other and other["theory"] < row["theory"]:
            won = "beats" if other["step_s"] < row["step_s"] else "DOES NOT BEAT"
            yield f"{place}: interleaved {won} 1f1b: step {other['step_s']:.3f} s and {row['step_s']:.3f} s"


def _small(arguments: argparse.Namespace, **axes: int) -> Layout:
    return Layout(**axes, width=128, layers=2, sequences=4) if arguments.quick else Layout(**axes)


def _layouts(arguments: argparse.Namespace) -> Iterator[dict[str, Any]]:
    for axes in ({"tp": 2}, {"pp": 2}, {"dp": 1}, {"dp": 2}, {"dp": 1, "zero_stage": 2}, {"dp": 2, "zero_stage": 2}):
        yield layouts.measure(_small(arguments, **axes), arguments.steps)


def _scaling(arguments: argparse.Namespace) -> Iterator[dict[str, Any]]:
    cores, single = len(os.sched_getaffinity(0)), None
    for processes in (1, 2, 4):
        row = layouts.measure(_small(arguments, dp=processes), arguments.steps)
        single = single or row["tokens_per_s"]
        yield {
            "processes": processes,
            "cores": min(processes, cores),
            "step_s": row["step_s"],
            "tokens_per_s": row["tokens_per_s"],
            "speed_up": row["tokens_per_s"] / single,
            "ideal": min(processes, cores),
            "of_ideal": row["tokens_per_s"] / single / min(processes, cores),
            "waiting": row["waiting"],
        }


def _short(value: Any) -> Any:
    if isinstance(value, tuple | list):
        return "..".join(f"{x:.3g}" for x in value)
    return f"{value:.4g}" if isinstance(value, float) else value


if __name__ == "__main__":
    main()
