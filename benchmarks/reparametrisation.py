"""What sigmaReparam costs a training step, beside plain linears and the ways of others.

    .venv/bin/python -m benchmarks.reparametrisation
    .venv/bin/python -m benchmarks.reparametrisation --quick
    .venv/bin/python -m benchmarks.reparametrisation --widths 512 --tokens 2048 8192 --micro-batches 1 --tp 1

A cell is a width, a number of tokens per step, of micro-batches and of tensor-parallel ranks. In each, the variants of
`benchmarks.linears` are built in one process (per rank) with one thread and take one step each in turn: forward and
backward of every micro-batch, what they do at the step boundary, torch's fused AdamW. Printed as each cell is done,
and at the end in a table: the median step of plain linears, and of the others the median over repeats of their step
over plain's in the same round, with quartiles. All widths and numbers of tokens are combined for every tp; several
micro-batches are tried at the middle number of tokens and the first tp, or with `--full` everywhere.

Memory is taken in a process of its own for each variant: what parameters, buffers and the optimizer hold, and by how
much the process's resident memory grew at its highest while it built the blocks and took three steps.

Cells whose plain step would take longer than `--longest` seconds, as the speed of a matrix product says, are skipped,
and the table says so. The JSON has all of it.
"""

import argparse
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from benchmarks import harness
from benchmarks.harness import Timing
from benchmarks.linears import VARIANTS, Bench, inputs
from parallel.topology import TensorParallel
from tests.distributed import spawn

PARAMETERS = 12
"""Weights of a block in squares of its width."""
TIMEOUT = 3600.0
MEBIBYTE = 2**20


@dataclass(frozen=True)
class Cell:
    """One point of the grid."""

    width: int
    tokens: int
    micro_batches: int
    tp: int
    blocks: int

    def flops(self) -> float:
        """Of a rank's matrix products in forward and backward."""
        return 6.0 * PARAMETERS * self.width**2 * self.blocks * self.tokens / self.tp

    def __str__(self) -> str:
        return f"d={self.width} tokens={self.tokens} micro-batches={self.micro_batches} tp={self.tp}"


def main() -> None:
    """Measure every cell and print the tables."""
    arguments = parse()
    torch.set_num_threads(1)
    console = harness.console()
    rate = product_rate()
    console.print(f"{harness.machine()}; a matrix product does {rate / 1e9:.0f} GFLOP/s")
    rows = []
    for cell in grid(arguments):
        rows.append(measure(cell, arguments, rate))
        console.print(line(cell, rows[-1]))
        harness.save(arguments.json, "reparametrisation", rows, memory=[], product_flops_per_second=rate)
    memory = [remember(cell) for cell in memory_cells(arguments)]
    console.print(harness.table("Time of a step, over plain linears: median (quartiles)", [cells(row) for row in rows]))
    if memory:
        console.print(harness.table("Memory, MiB", memory))
    harness.save(arguments.json, "reparametrisation", rows, memory=memory, product_flops_per_second=rate)


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument("--widths", type=int, nargs="+", default=[256, 512, 1024, 2048])
    parser.add_argument("--tokens", type=int, nargs="+", default=[512, 2048, 8192], help="per step")
    parser.add_argument("--micro-batches", type=int, nargs="+", default=[1, 2, 4, 8])
    parser.add_argument("--tp", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--blocks", type=int, default=1)
    parser.add_argument("--variants", nargs="+", choices=VARIANTS[1:], default=list(VARIANTS[1:]), help="beside plain")
    parser.add_argument("--repeats", type=int, default=15, help="at most, and at least five")
    parser.add_argument("--seconds", type=float, default=30.0, help="for the repeats of a cell, about")
    parser.add_argument("--longest", type=float, default=8.0, help="seconds of a plain step; longer cells are skipped")
    parser.add_argument("--full", action="store_true", help="every combination, not only one axis varied at a time")
    parser.add_argument("--no-memory", action="store_true")
    parser.add_argument("--quick", action="store_true", help="two widths, few cells, under a minute")
    parser.add_argument("--json", type=Path, default=Path("runs/benchmarks/reparametrisation.json"))
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.widths, arguments.tokens = [256, 512], [512, 2048]
        arguments.micro_batches, arguments.tp = [1], [1]
        arguments.repeats, arguments.seconds = 7, 5.0
    return arguments


def grid(arguments: argparse.Namespace) -> Iterator[Cell]:
    """The cells asked for, one process first."""
    axes = (arguments.tp, arguments.widths, arguments.tokens, arguments.micro_batches)
    for tp, width, tokens, micro_batches in product(*axes):
        alone = (tp == arguments.tp[0] and tokens == middle(arguments)) or micro_batches == arguments.micro_batches[0]
        if alone or arguments.full:
            yield Cell(width, tokens, micro_batches, tp, arguments.blocks)


def middle(arguments: argparse.Namespace) -> int:
    """The number of tokens at which everything else is varied."""
    tokens: list[int] = sorted(arguments.tokens)
    return tokens[len(tokens) // 2]


def memory_cells(arguments: argparse.Namespace) -> list[tuple[Cell, str]]:
    """Every width with each variant, at the middle number of tokens."""
    tokens = sorted(arguments.tokens)[len(arguments.tokens) // 2]
    widths = [] if arguments.no_memory else arguments.widths
    return [
        (Cell(width, tokens, 1, 1, arguments.blocks), name)
        for width in widths
        for name in ["plain", *arguments.variants]
    ]


def product_rate() -> float:
    """FLOP/s of a matrix product of 512 on this thread: the best of several."""
    a, b = torch.randn(2, 512, 512).unbind()
    best = min(harness.interleave({"product": lambda: a @ b}, 30)["product"].wall)
    return 2 * 512**3 / best


def measure(cell: Cell, arguments: argparse.Namespace, rate: float) -> dict[str, Any]:
    """One row: seconds of a plain step, and the others' ratios to it."""
    row: dict[str, Any] = asdict(cell)
    expected = cell.flops() / rate
    if expected > arguments.longest:
        return row | {"skipped": f"a plain step would take about {expected:.0f} s"}
    names = ["plain", *arguments.variants]
    # Two uncounted rounds, then as many as fit.
    repeats = max(5, min(arguments.repeats, int(arguments.seconds / (expected * len(names)))))
    timings: dict[str, Timing] = spawn(cell.tp, take_steps, cell, names, repeats, timeout=TIMEOUT)[0]
    plain = timings["plain"]
    row |= {"repeats": repeats, "plain_seconds": plain.median, "plain_quartiles": plain.quartiles}
    for name in arguments.variants:
        for clock in ("wall", "cpu"):
            row[f"{name}/{clock}"] = harness.ratio(timings[name], plain, clock)  # type: ignore[arg-type]
    return row


def take_steps(cell: Cell, names: list[str], repeats: int) -> dict[str, Timing]:
    """On one rank: steps of each variant in turn."""
    micro_batches = inputs(cell.width, cell.tokens, cell.micro_batches)
    benches = {name: Bench(name, cell.width, cell.blocks, tensor_parallel()) for name in names}
    return harness.interleave({name: lambda b=bench: b.step(micro_batches) for name, bench in benches.items()}, repeats)


def tensor_parallel() -> TensorParallel:
    """All ranks as one tensor-parallel group."""
    return TensorParallel(dist.group.WORLD, dist.get_rank(), dist.get_world_size())


def remember(cell_and_variant: tuple[Cell, str]) -> dict[str, object]:
    """One row of memory."""
    cell, name = cell_and_variant
    held, grown = spawn(1, grow, cell, name, timeout=TIMEOUT)[0]
    return {"d": cell.width, "tokens": cell.tokens, "variant": name, "held": held / MEBIBYTE, "peak": grown / MEBIBYTE}


def grow(cell: Cell, name: str) -> tuple[int, int]:
    """Bytes held, and by how much the resident memory of this process grew at its highest."""
    micro_batches = inputs(cell.width, cell.tokens, cell.micro_batches)
    before = resident("VmRSS")
    bench = Bench(name, cell.width, cell.blocks, tensor_parallel())
    for _ in range(3):
        bench.step(micro_batches)
    return bench.held(), resident("VmHWM") - before


def resident(field: str) -> int:
    """Bytes that Linux counts as resident in this process: now (VmRSS) or at its highest (VmHWM)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    (kibibytes,) = (line.split()[1] for line in lines if line.startswith(f"{field}:"))
    return int(kibibytes) * 1024


def line(cell: Cell, row: dict[str, Any]) -> str:
    """What is printed when a cell is done."""
    if "skipped" in row:
        return f"{cell}: skipped, {row['skipped']}"
    others = (f"{key.removesuffix('/wall')} {row[key][0]:.3f}" for key in row if key.endswith("/wall"))
    return f"{time.strftime('%H:%M:%S')} {cell}: plain {row['plain_seconds']:.3f} s, {', '.join(others)}"


def cells(row: dict[str, Any]) -> dict[str, object]:
    """A row of the printed table."""
    shown: dict[str, object] = {"d": row["width"], "tokens": row["tokens"], "m": row["micro_batches"], "tp": row["tp"]}
    shown["plain, ms"] = f"{row['plain_seconds'] * 1e3:.1f}" if "plain_seconds" in row else "skipped"
    for name in VARIANTS[1:]:
        if f"{name}/wall" in row:
            middle, first, third = row[f"{name}/wall"]
            shown[name] = f"{middle:.3f} ({first:.3f}-{third:.3f})"
            shown[f"{name}, CPU"] = f"{row[f'{name}/cpu'][0]:.3f}"
    return shown


if __name__ == "__main__":
    main()
