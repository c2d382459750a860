"""Kill training at random moments and start it again until it ends: is the result the uninterrupted run's, bit for bit?

    .venv/bin/python -m benchmarks.kill_and_resume --trials 30

Each trial trains the same small model (tensor parallel 2, a checkpoint every 10 steps, written beside training). It is
killed by SIGKILL, one rank or every process, at times drawn from a seed, saves included; then it is started again by
the same command, until it finishes. Every tensor of the final checkpoint is compared, byte by byte, with the
uninterrupted run's.
"""

import argparse
import os
import random
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import psutil
from rich.console import Console
from rich.table import Table
from safetensors import safe_open

from data.prepare import prepare
from monitoring.recorder import read_events, read_metrics

STEPS, INTERVAL = 120, 10
KILLS_PER_TRIAL = 2


@dataclass
class Trial:
    """What happened: where it was killed (steps done), who, where it went on, and whether the bits are the same."""

    number: int
    kills: list[str]
    resumed_at: list[int]
    passed_over: int
    equal: bool


def main() -> int:
    """Run the trials and print the table; 0 if every one ended bit-equal."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument("--trials", type=int, default=30)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        prepare(["stdlib"], folder / "data", tokenizer="byte", max_bytes=2_000_000, progress=False)
        start(folder, "through").wait()
        reference = final_state(folder / "through")
        trials = [
            run_trial(folder, n, random.Random(f"{arguments.seed}/{n}"), reference) for n in range(arguments.trials)
        ]
    report(trials)
    return 0 if all(trial.equal for trial in trials) else 1


def run_trial(folder: Path, number: int, dice: random.Random, reference: dict[tuple[str, str], bytes]) -> Trial:
    """Kill and restart one run until it has ended."""
    name, kills = f"trial-{number}", []
    run_dir = folder / name
    for _ in range(KILLS_PER_TRIAL):
        process = start(folder, name)
        done = len(read_metrics(run_dir))
        target = dice.randint(done, STEPS)
        while process.poll() is None and len(read_metrics(run_dir)) < target:
            time.sleep(0.01)
        time.sleep(dice.uniform(0, 0.2))
        if process.poll() is None:
            kills.append(f"{len(read_metrics(run_dir))} {kill(process, dice)}")
        process.wait()
    start(folder, name).wait()
    resumes = [event for event in read_events(run_dir) if event["kind"] == "resume"]
    passed_over = sum(";" in event["reason"] for event in resumes)
    return Trial(number, kills, [event["step"] for event in resumes], passed_over, final_state(run_dir) == reference)


def start(folder: Path, name: str) -> subprocess.Popen[bytes]:
    """The command a user would type, first and again."""
    overrides = [
        f"run.dir={folder}", f"run.name={name}", f"data.sources.0.path={folder / 'data'}", f"training.steps={STEPS}",
        f"checkpoint.interval={INTERVAL}", "parallel.tp=2", "tracking.kind=none", "monitoring.interval=0",
        "training.device=cpu",
    ]  # fmt: skip
    command = [sys.executable, "-m", "launcher", "train", "configs/tiny.yaml", *overrides]
    quiet = subprocess.DEVNULL
    return subprocess.Popen(command, stdout=quiet, stderr=quiet, env=os.environ | {"OMP_NUM_THREADS": "1"})


def kill(process: subprocess.Popen[bytes], dice: random.Random) -> str:
    """SIGKILL to one rank, or to every process of the run."""
    family = psutil.Process(process.pid)
    ranks = [child for child in family.children(recursive=True) if "launcher.worker" in child.cmdline()]
    if ranks and dice.random() < 0.5:
        dice.choice(ranks).kill()
        return "one rank"
    for victim in [family, *family.children(recursive=True)]:
        victim.kill()
    return "all"


def final_state(run_dir: Path) -> dict[tuple[str, str], bytes]:
    """The bytes of every tensor of the last step's checkpoint (their order within a file is not fixed)."""
    tensors = {}
    for path in (run_dir / "checkpoints" / f"step-{STEPS:08d}").glob("*.safetensors"):
        with safe_open(path, framework="numpy") as file:
            tensors |= {(path.name, name): file.get_tensor(name).tobytes() for name in file.keys()}  # noqa: SIM118
    assert tensors, f"{run_dir} did not end"
    return tensors


def report(trials: list[Trial]) -> None:
    """A row a trial."""
    table = Table("trial", "killed at step", "went on from", "damaged passed over", "final state", box=None)
    for trial in trials:
        equal = "bit-equal" if trial.equal else "[red]differs"
        resumed = ", ".join(map(str, trial.resumed_at))
        table.add_row(str(trial.number), ", ".join(trial.kills), resumed, str(trial.passed_over), equal)
    console = Console(width=120)
    console.print(table)
    console.print(f"{sum(trial.equal for trial in trials)} of {len(trials)} bit-equal to the uninterrupted run")


if __name__ == "__main__":
    sys.exit(main())
