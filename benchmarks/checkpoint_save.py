"""What a checkpoint costs: how long training waits for a save, and how fast the disk takes it.

    .venv/bin/python -m benchmarks.checkpoint_save

One process, one model; each way of saving the same state in turn, several times over; medians with their spread:

    asynchronous, training waits   until `save` returns: the copy to host memory
    asynchronous, finished         the same saves, until the checkpoint before is deleted; nothing trains beside here
    synchronous                    `checkpoint.asynchronous: false`, until `save` returns: committed, with checksums,
                                   all on the disk (the checkpoint before it is deleted beside training)
    torch.distributed.checkpoint   `dcp.save` of the same tensors with its default writer (no fsync of the folder, no
                                   checksums, metadata in a pickle)
    raw write                      the same number of bytes, one new file, written in order and fsynced

Memory is the peak of what is resident during a save less what was before (Linux). The first asynchronous save, which
touches the memory of the copies for the first time, is shown apart.
"""

import argparse
import ctypes
import os
import platform
import re
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from itertools import count
from pathlib import Path

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
WAITS, FINISHED, SYNCHRONOUS, PLAIN, RAW = WAYS = (
    "asynchronous, training waits",
    "asynchronous, finished",
    "synchronous",
    "torch.distributed.checkpoint",
    "raw write",
)


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
    beside_config, waiting_config = (config(folder, hidden_size, layers, mode) for mode in (True, False))
    topology = topologies.start(beside_config.parallel, "cpu")
    trainer = build_trainer(beside_config, topology, VOCAB)
    beside = Checkpoints(beside_config, topology, trainer, "none")
    waiting = Checkpoints(waiting_config, topology, trainer, "none")
    state = TrainingState(trainer, topology)
    size = sum(tensor.nbytes for tensor in state.to_save().values())
    payload = bytes(os.urandom(1 << 20)) * (size >> 20)
    steps, seconds, extra = count(1), {way: list[float]() for way in WAYS}, {WAITS: [0], SYNCHRONOUS: [0]}

    failures: list[str] = []

    def watch(_: int, kind: str, line: str) -> None:
        if kind == "checkpoint_failed":
            failures.append(line)

    def save(checkpoints: Checkpoints) -> float:
        return timed(lambda: checkpoints.save(next(steps), float("nan"), {}, watch))

    settle(folder)
    before = resident()
    first = save(beside)
    beside.wait()
    extra[WAITS].append(peak() - before)
    for _ in range(repeats):
        settle(folder)
        started = time.perf_counter()
        seconds[WAITS].append(save(beside))
        beside.wait()
        seconds[FINISHED].append(time.perf_counter() - started)
        settle(folder)
        before = resident()
        seconds[SYNCHRONOUS].append(save(waiting))
        extra[SYNCHRONOUS].append(peak() - before)
        waiting.wait()
        settle(folder)
        seconds[PLAIN].append(timed(lambda: dcp.save(state.to_save(), checkpoint_id=str(folder / "plain"))))
        settle(folder)
        seconds[RAW].append(timed(lambda: raw(folder / "raw", payload)))
    assert not failures, failures
    topologies.stop()
    print_table(seconds, size)
    print(f"first asynchronous save: training waits {first:.2f} s")
    for way, peaks in extra.items():
        print(f"extra memory, {way.split(',')[0]}: {max(peaks) / 2**20:,.0f} MiB")


def config(folder: Path, hidden_size: int, layers: int, asynchronous: bool) -> Config:
    """A run that keeps one checkpoint."""
    values = {
        "run": {"dir": folder},
        "data": {"sources": [{"path": "unused"}]},
        "model": {
            "hidden_size": hidden_size, "layers": layers, "heads": 8,
            "reparam": {"kind": "sigma", "start": "power"},
        },
        "checkpoint": {"interval": 1, "keep": 1, "asynchronous": asynchronous},
        "training": {"device": "cpu"},
    }  # fmt: skip
    return resolve(Config.model_validate(values), 1)


def timed(act: Callable[[], None]) -> float:
    """Seconds it takes."""
    started = time.perf_counter()
    act()
    return time.perf_counter() - started


def raw(path: Path, payload: bytes) -> None:
    """As fast as this disk takes bytes in order."""
    with path.open("wb") as file:
        file.write(payload)
        file.flush()
        os.fsync(file.fileno())


def settle(folder: Path) -> None:
    """Nothing of the last way is left for the next to wait for; and the peak of memory counts from here."""
    shutil.rmtree(folder / "plain", ignore_errors=True)
    (folder / "raw").unlink(missing_ok=True)
    os.sync()
    time.sleep(0.5)  # freed blocks are discarded on the device after that
    ctypes.CDLL(None).malloc_trim(0)  # memory freed before would be taken again unseen
    Path("/proc/self/clear_refs").write_text("5")


def resident() -> int:
    """Bytes of this process in memory."""
    return _status("VmRSS")


def peak() -> int:
    """The most there were since `settle`."""
    return _status("VmHWM")


def _status(key: str) -> int:
    found = re.search(rf"^{key}:\s+(\d+) kB$", Path("/proc/self/status").read_text(), re.MULTILINE)
    assert found is not None, f"the kernel tells no {key}"
    return int(found[1]) * 1024


def print_table(seconds: dict[str, list[float]], size: int) -> None:
    """Medians, and ratios to the raw write and to the synchronous save."""
    medians = {way: statistics.median(times) for way, times in seconds.items()}
    table = Table("way", "median s", "min to max", "x raw write", "x synchronous", box=None)
    for way, times in seconds.items():
        spread = f"{min(times):.3f} to {max(times):.3f}"
        ratios = [f"{medians[way] / medians[other]:.2f}" for other in (RAW, SYNCHRONOUS)]
        table.add_row(way, f"{medians[way]:.3f}", spread, *ratios)
    console = Console(width=110)
    console.print(
        f"{size / 2**20:,.0f} MiB of state; {platform.machine()}, {os.cpu_count()} cores, "
        f"{torch.get_num_threads()} threads, torch {torch.__version__}"
    )
    console.print(table)


if __name__ == "__main__":
    main()
