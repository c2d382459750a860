"""How long it takes from typing `steadytrain submit` to the first training step, beside a bare `srun` of the same run.

    .venv/bin/python -m benchmarks.submission --repeats 3

On the idle local Slurm of `cluster/`, two nodes, tensor parallel 2: median seconds from the command's start to

    submitted     the command has returned (for srun: there is no such moment)
    running       the first process of the job has begun
    first step    the first line of metrics.jsonl
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import psutil
from rich.console import Console
from rich.table import Table

from cluster.lab import Lab
from cluster.lab import start as start_lab
from data.prepare import prepare

STEPS = 20
MOMENTS = ("submitted", "running", "first step")


def main() -> None:
    """Measure both ways in turn and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument("--repeats", type=int, default=3)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        prepare(["stdlib"], folder / "data", tokenizer="byte", max_bytes=2_000_000, progress=False)
        lab = start_lab(folder / "lab", nodes=2)
        try:
            measured = measure(lab, folder, arguments.repeats)
        finally:
            lab.stop(wipe=True)
    report(measured)


def measure(lab: Lab, folder: Path, repeats: int) -> dict[str, list[dict[str, float]]]:
    """Both ways in turn, so that a change of the machine's load meets both."""
    measured: dict[str, list[dict[str, float]]] = {"steadytrain submit": [], "bare srun": []}
    for repeat in range(repeats):
        measured["steadytrain submit"].append(submitted(lab, folder, f"submit-{repeat}"))
        measured["bare srun"].append(bare(lab, folder, f"srun-{repeat}"))
    return measured


def submitted(lab: Lab, folder: Path, name: str) -> dict[str, float]:
    """Through the queue."""
    started = time.time()
    run(lab, [*python("submit"), *settings(folder, name), "--cluster", "lab", "--nodes", "2", "--tasks-per-node", "1"])
    moments = {"submitted": time.time() - started}
    records = folder / name / "job" / "attempts"
    wait(lambda: bool(list(records.glob("*/rank-0.json"))))
    began = min(json.loads(path.read_text())["began"] for path in records.glob("*/rank-*.json"))
    moments["running"] = began - started
    moments["first step"] = first_step(folder / name) - started
    wait(lambda: not lab.run("squeue", "--noheader").strip())
    return moments


def bare(lab: Lab, folder: Path, name: str) -> dict[str, float]:
    """The same two processes by srun, with an address and a port chosen by hand."""
    started = time.time()
    address = {"MASTER_ADDR": lab.nodes[0], "MASTER_PORT": "29411", "GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1"}
    command = ["srun", "--nodes=2", "--ntasks-per-node=1", *python("train"), *settings(folder, name)]
    quiet = subprocess.DEVNULL
    environment = os.environ | lab.environment | address
    process = subprocess.Popen(command, env=environment, stdout=quiet, stderr=quiet)
    began = wait(lambda: ranks_of(name)) and min(process.create_time() for process in ranks_of(name))
    # The start of a process is known to a hundredth of a second only.
    moments = {"running": max(0.0, began - started), "first step": first_step(folder / name) - started}
    process.wait()
    return moments


def python(command: str) -> list[str]:
    """A steadytrain command on the tiny model."""
    return [sys.executable, "-m", "launcher", command, "configs/tiny.yaml"]


def settings(folder: Path, name: str) -> list[str]:
    """What both ways train."""
    return [
        f"run.dir={folder}", f"run.name={name}", f"data.sources.0.path={folder / 'data'}", f"training.steps={STEPS}",
        "parallel.tp=2", "tracking.kind=none", "training.device=cpu",
    ]  # fmt: skip


def run(lab: Lab, command: list[str]) -> None:
    """Wait for a command that talks to the cluster."""
    subprocess.run(command, env=os.environ | lab.environment, check=True, stdout=subprocess.DEVNULL)


def ranks_of(name: str) -> list[psutil.Process]:
    """The ranks srun started: Python processes of the run, not srun itself."""
    found = []
    for process in psutil.process_iter(["cmdline", "name"]):
        line = process.info["cmdline"] or []
        if f"run.name={name}" in line and not process.info["name"].startswith("srun") and line[0] == sys.executable:
            found.append(process)
    return found


def first_step(run_dir: Path) -> float:
    """Unix time at which the first line of metrics.jsonl was there."""
    path = run_dir / "metrics.jsonl"
    wait(lambda: path.exists() and path.stat().st_size > 0)
    return time.time()


def wait(condition: Callable[[], object], seconds: float = 300.0) -> bool:
    """Look often: the moment is what is measured."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"not within {seconds:.0f} s"
        time.sleep(0.01)
    return True


def report(measured: dict[str, list[dict[str, float]]]) -> None:
    """Median seconds."""
    table = Table("way", *MOMENTS, "first step, min to max", box=None)
    for way, repeats in measured.items():
        medians = [
            f"{statistics.median(moments[moment] for moments in repeats):.1f}" if moment in repeats[0] else "-"
            for moment in MOMENTS
        ]
        last = [moments["first step"] for moments in repeats]
        table.add_row(way, *medians, f"{min(last):.1f} to {max(last):.1f}")
    console = Console(width=100)
    console.print(table)
    ratio = [
        statistics.median(moments["first step"] for moments in measured[way])
        for way in ("steadytrain submit", "bare srun")
    ]
    slurm = shutil.which("sbatch") or "unpacked"
    console.print(f"ratio of the first step: {ratio[0] / ratio[1]:.2f}; {os.cpu_count()} cores; Slurm: {slurm}")


if __name__ == "__main__":
    main()
