"""The loader in a process of its own: its start, the memory it takes, how many samples a second it gives."""

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

SEQUENCE_LENGTH = 2048
BATCH = 64


def run_loader(folder: Path, steps: int) -> dict[str, Any]:
    """What `main` prints, from a fresh interpreter."""
    command = [sys.executable, "-m", "benchmarks.data.loader", str(folder), str(steps)]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def main() -> None:
    """Open the dataset, take `steps` batches from all over it, find where some samples come from; print JSON."""
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("steps", type=int)
    arguments = parser.parse_args()

    started = time.perf_counter()
    import torch

    from configs.schema import DataSource
    from data.documents import locate
    from data.samples import Samples
    from parallel.topology import TensorParallel, Topology
    from training.batches import Batches

    imports_s, imports_mb = time.perf_counter() - started, _resident()

    started, busy = time.perf_counter(), time.process_time()
    alone = Topology(0, 1, torch.device("cpu"), TensorParallel(), 0, 1, None, 0, 1, None, None)  # type: ignore[arg-type]
    sources = [DataSource(path=arguments.folder)]
    samples, _ = (Samples(sources, split, SEQUENCE_LENGTH, 0) for split in ("train", "validation"))
    batches = Batches(samples, BATCH, alone)
    batches.step(0)
    start_s, start_cpu_s, start_mb = time.perf_counter() - started, time.process_time() - busy, _resident()

    started = time.perf_counter()
    for step in range(1, arguments.steps + 1):
        batches.step(step)
    seconds, read_mb = time.perf_counter() - started, _resident()

    started = time.perf_counter()
    for k in range(arguments.steps):
        locate(samples, k)
    locate_s, located_mb = (time.perf_counter() - started) / arguments.steps, _resident()
    found = {
        "windows": samples.windows[0],
        "imports_s": imports_s,
        "imports_mb": imports_mb,
        "start_s": start_s,
        "start_cpu_s": start_cpu_s,
        "start_mb": start_mb - imports_mb,
        "read_mb": read_mb - imports_mb,
        "located_mb": located_mb - imports_mb,
        "peak_mb": _resident("VmHWM") - imports_mb,
        "samples_per_s": arguments.steps * BATCH / seconds,
        "locate_ms": 1000 * locate_s,
    }
    print(json.dumps(found))


def _resident(field: str = "VmRSS") -> float:
    """MiB of this process that are in memory, mapped files included; VmHWM: that were at most.

    (The `ru_maxrss` of getrusage begins with what the parent had.)
    """
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(field)).split()[1]) / 1024


if __name__ == "__main__":
    main()
