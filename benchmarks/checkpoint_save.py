"""What a checkpoint costs: how long training waits for a save, and how fast the disk takes it.

    .venv/bin/python -m benchmarks.checkpoint_save

One process, one model; each way of saving the same state in turn, several times over; medians with their spread:

    asynchronous, training waits   until `save` returns: the copy to host memory
    synchronous                    until the checkpoint is committed: copy, write, fsync, checksums, rename
    torch.distributed.checkpoint   `dcp.save` of the same tensors with its default writer (no fsync of the folder, no
                                   checksums, metadata in a pickle)
    raw write                      the same number of bytes, one file, written in order and fsynced
"""

import argparse
import os
import platform
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import torch
import torch.distributed.checkpoint as dcp
from rich.console import Console
from rich.table import Table

from configs.checks import resolve
from configs.schema import Config
from parallel import topology as topologies
from training.build import build_trainer
from training.checkpoint.saver import Checkpoints
from training.checkpoint.state import TrainingState

VOCAB = 257


def main() -> None:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--hidden-size", type=int, default=512)
    parser.add_argument("--layers", type=int, default=8)
    arguments = parser.parse_args()
    os.environ.setdefault("LOCAL_RANK", "0")  # DeepSpeed asks for it
    with tempfile.TemporaryDirectory(dir=".") as name:
        measure(Path(name), arguments.repeats, arguments.hidden_size, arguments.layers)


def measure(folder: Path, repeats: int, hidden_size: int, layers: int) -> None:
    """All ways in turn, `repeats` times."""
    config = resolve(
        Config.model_validate(
            {
                "run": {"dir": folder},
                "data": {"sources": [{"path": "unused"}]},
                "model": {
                    "hidden_size": hidden_size, "layers": layers, "heads": 8,
                    "reparam": {"kind": "sigma", "start": "power"},
                },
                "checkpoint": {"interval": 1, "keep": 1},
                "training": {"device": "cpu"},
            }
        ),
        1,
    )  # fmt: skip
    topology = topologies.start(config.parallel, "cpu")
    trainer = build_trainer(config, topology, VOCAB)
    checkpoints, state = Checkpoints(config, topology, trainer, "none"), TrainingState(trainer, topology)
    size = sum(tensor.nbytes for tensor in state.to_save().values())
    payload = bytes(os.urandom(1 << 20)) * (size >> 20)
    step, failures = 0, list[str]()

    def save() -> None:
        nonlocal step
        step += 1
        checkpoints.save(
            step, float("nan"), {}, lambda _, kind, line: failures.append(line) if "failed" in kind else None
        )

    def save_and_wait() -> None:
        save()
        checkpoints.wait()

    ways: dict[str, Callable[[], None]] = {
        "asynchronous, training waits": save,
        "synchronous": save_and_wait,
        "torch.distributed.checkpoint": lambda: plain(folder / "plain", state),
        "raw write": lambda: raw(folder / "raw", payload),
    }
    times: dict[str, list[float]] = {way: [] for way in ways}
    before, peak = psutil.Process().memory_info().rss, 0
    for _ in range(repeats):
        for way, act in ways.items():
            os.sync()
            started = time.perf_counter()
            act()
            times[way].append(time.perf_counter() - started)
            peak = max(peak, psutil.Process().memory_info().rss) if way == "asynchronous, training waits" else peak
            checkpoints.wait()
    assert not failures, failures
    topologies.stop()
    report(times, size, peak - before)


def plain(folder: Path, state: TrainingState) -> None:
    """torch.distributed.checkpoint as its documentation shows it."""
    shutil.rmtree(folder, ignore_errors=True)
    dcp.save(state.to_save(), checkpoint_id=str(folder))


def raw(path: Path, payload: bytes) -> None:
    """As fast as this disk takes bytes in order."""
    with path.open("wb") as file:
        file.write(payload)
        file.flush()
        os.fsync(file.fileno())


def report(times: dict[str, list[float]], size: int, extra: int) -> None:
    """Seconds, and ratios to the raw write and to the synchronous save."""
    medians = {way: statistics.median(seconds) for way, seconds in times.items()}
    table = Table("way", "median s", "min to max", "x raw write", "x synchronous", box=None)
    for way, seconds in times.items():
        spread = f"{min(seconds):.2f} to {max(seconds):.2f}"
        ratios = [f"{medians[way] / medians[other]:.2f}" for other in ("raw write", "synchronous")]
        table.add_row(way, f"{medians[way]:.2f}", spread, *ratios)
    console = Console(width=110)
    console.print(
        f"{size / 2**20:,.0f} MiB of state; {platform.machine()}, {os.cpu_count()} cores, torch {torch.__version__}"
    )
    console.print(table)
    console.print(f"extra memory during a save: {extra / 2**20:,.0f} MiB")


if __name__ == "__main__":
    main()
