"""A whole training step, ours and its peers', in tokens per second.

    .venv/bin/python -m benchmarks.training_step            (about half an hour on two cores; --quick: a minute)
    .venv/bin/python -m benchmarks.training_step --profile ours

A step is data from an array in memory, forward, backward, clipping to 1.0 and AdamW; one thread per process. Models of
a row have the same shape and, within 1 %, the same number of parameters. All are built in the same processes and take
their steps in turn; a ratio is the median over pairs of neighbouring steps. Over 1, ours is faster.

    ours, ours-sigma   the trainer as `steadytrain train` runs it, without monitor and journal; plain, sigmaReparam
    plain-gpt          GPT-2 in plain PyTorch with nanoGPT's loop
    megatron-core      its GPTModel with local layers, schedules, gradient buffers and optimizer (`peers/megatron.py`)
    hf-llama           transformers' LlamaForCausalLM in a plain loop

In bf16 ours keeps fp32 weights and casts them once a step, as megatron-core does; the plain loops use autocast.
"""

import argparse
from collections.abc import Iterable
from dataclasses import replace
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from benchmarks.harness import Timing, machine, ratio, save, table
from benchmarks.peers.contest import BUILD, OURS, hold, join, names_of
from benchmarks.peers.task import Task
from tests.distributed import spawn

PACKAGES = ("megatron-core", "transformers", "deepspeed")
LAYERS = 4
CELL_SECONDS = 3600.0
"""After so long without a result a cell has failed."""
ROWS_OF_PROFILE = 25


def main() -> None:
    """Measure, print each row as it is known, then the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--widths", type=int, nargs="+", default=[256, 512])
    parser.add_argument("--layers", type=int, default=LAYERS)
    parser.add_argument("--quick", action="store_true", help="tiny models and three repeats, to see that it works")
    parser.add_argument("--only", default="", help="only cells whose name has this in it, e.g. 'llama d 512'")
    parser.add_argument("--out", type=Path, default=Path("runs/benchmarks/training_step.json"))
    parser.add_argument("--profile", choices=list(BUILD), help="print the costliest operators of one contender instead")
    arguments = parser.parse_args()
    if arguments.repeats < 1:
        parser.error(f"--repeats {arguments.repeats}: must be at least 1")
    if arguments.layers < 2 or arguments.layers % 2:
        parser.error(f"--layers {arguments.layers}: must be even, for a pipeline of two")
    if wrong := [width for width in arguments.widths if width < 128 or width % 128]:
        parser.error(f"--widths {wrong[0]}: must be a multiple of 128, two heads of 64")
    cells = [task for task in tasks(arguments.widths, arguments.layers) if arguments.only in task.label]
    if arguments.quick:
        cells = [replace(task, width=128, layers=2, vocabulary=512, length=64) for task in cells]
        cells, arguments.repeats = list(dict.fromkeys(cells)), 3
    if arguments.profile:
        cells = [task for task in cells if arguments.profile in names_of(task)]
    if not cells:
        parser.error("no cell is left: see --only, --widths and --profile")
    if arguments.profile:
        print(spawn(cells[0].tp * cells[0].pp, profile, cells[0], arguments.profile, timeout=CELL_SECONDS)[0])
        return
    measure(cells, arguments.repeats, arguments.out)


def tasks(widths: Iterable[int], layers: int) -> list[Task]:
    """The cells of the table."""
    task = partial(Task, layers=layers)
    widths = list(widths)
    families: tuple[Any, ...] = ("gpt", "llama")
    single = [task(family, width, vocabulary=4096) for family in families for width in widths]
    large_vocabulary = [task(family, max(widths), vocabulary=32_768) for family in families]
    bf16 = [replace(cell, precision="bf16") for cell in single]
    two = [task("gpt", width, vocabulary=4096, tp=tp, pp=pp) for tp, pp in ((2, 1), (1, 2)) for width in widths]
    return [*single, *large_vocabulary, *bf16, *two]


def measure(cells: list[Task], repeats: int, out: Path) -> None:
    """Rows of each cell, to the screen and to `out` as soon as it is done; at the end all of them in one table."""
    console = Console(width=160)
    versions = {package: version(package) for package in PACKAGES}
    console.print(machine() | versions)
    rows: list[dict[str, Any]] = []
    raw: dict[str, Any] = {}
    for task in cells:
        # Of several ranks the first one's clock counts: a step ends on all of them together.
        timings, parameters, losses = spawn(task.tp * task.pp, hold, task, repeats, timeout=CELL_SECONDS)[0]
        found = rows_of(task, timings)
        console.print(table(f"{task.label}, parameters: {parameters}", found))
        rows += found
        raw[task.label] = {
            name: {"wall": timing.wall, "cpu": timing.cpu, "parameters": parameters[name], "loss": losses[name]}
            for name, timing in timings.items()
        }
        save(out, "training_step", rows, versions=versions, repeats=repeats, layers=cells[0].layers, seconds=raw)
    console.print(table("Tokens/s, ours / peer's (over 1: ours is faster)", rows))


def rows_of(task: Task, timings: dict[str, Timing]) -> list[dict[str, Any]]:
    """A row for each of ours against each peer; and sigmaReparam against plain."""
    rows = []
    against = [(own, peer) for peer in timings if peer not in OURS for own in OURS]
    for own, peer in [*against, ("ours-sigma", "ours")]:
        middle, low, high = ratio(timings[peer], timings[own])
        rows.append(
            {
                "cell": task.label,
                "who": own,
                "against": peer,
                "tokens/s ratio": middle,
                "q1": low,
                "q3": high,
                # CPU time of a rank that waits for another says nothing.
                "CPU time ratio": ratio(timings[peer], timings[own], "cpu")[0] if task.tp * task.pp == 1 else None,
                "ms": timings[own].median * 1e3,
                "ms of peer": timings[peer].median * 1e3,
                "tokens/s": task.tokens / timings[own].median,
            }
        )
    return rows


def profile(task: Task, name: str, steps: int = 3) -> str:
    """The operators in which one contender spends its own CPU time, of this rank, as a table."""
    contender = BUILD[name](task, join(task))
    for _ in range(2):
        contender.step()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profiler:
        for _ in range(steps):
            contender.step()
    operators = profiler.key_averages().table(sort_by="self_cpu_time_total", row_limit=ROWS_OF_PROFILE)
    return f"{name}, {task.label}, {steps} steps\n{operators}"


if __name__ == "__main__":
    main()
