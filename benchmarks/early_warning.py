"""How many steps before the loss does the early warning come? A collapsing pre-LN run beside its sigmaReparam twin.

    .venv/bin/python -m benchmarks.early_warning --seeds 5

Both train the byte-level model of configs/tiny.yaml at learning rate 3e-2 on the same batches, measured every 5 steps
and evaluated every 5. The loss departs at the first evaluation from which pre-LN's validation loss stays at least
0.05 nats above sigmaReparam's to the end; before, pre-LN is ahead.
"""

import argparse
import os
import tempfile
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

from benchmarks.faults import make_config
from configs.schema import Config
from data.prepare import prepare
from monitoring.recorder import read_events, read_metrics
from tests.distributed import spawn
from training.run import train

STEPS, APART = 150, 0.05
SETTINGS = (
    f"training.steps={STEPS}",
    "training.eval_interval=5",
    "training.eval_samples=256",
    "optimizer.lr=3e-2",
    "monitoring.interval=5",
)


@dataclass(frozen=True)
class Pair:
    """One seed: the step of the first early warning, of the collapse alarm, and where the loss departs."""

    seed: int
    warned: int | None
    collapsed: int | None
    departed: int | None
    losses: tuple[float, float]
    twin_warned: int | None

    @property
    def lead(self) -> int | None:
        """Steps from the warning to the departure."""
        return None if self.warned is None or self.departed is None else self.departed - self.warned


def main() -> int:
    """Train the pairs and print the table; 0 if every warning came before the loss departed, and none in a twin."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seeds", type=int, default=5)
    arguments = parser.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        prepare(["stdlib"], folder / "data", tokenizer="byte", max_bytes=4_000_000, progress=False)
        pairs = [run_pair(folder, seed) for seed in range(arguments.seeds)]
    report(pairs)
    return 0 if all((pair.lead or 0) > 0 and pair.twin_warned is None for pair in pairs) else 1


def run_pair(folder: Path, seed: int) -> Pair:
    """Train both runs of a seed."""
    configs = {
        kind: make_config(folder, f"{kind}-{seed}", 1, *SETTINGS, f"training.seed={seed}", f"model.reparam.kind={kind}")
        for kind in ("none", "sigma")
    }
    for config in configs.values():
        spawn(1, train, config, timeout=900)
    pre, twin = (validation(configs[kind]) for kind in ("none", "sigma"))
    above = [step for step in pre if pre[step] - twin[step] < APART]
    departed = min((step for step in pre if not above or step > max(above)), default=None)
    return Pair(
        seed,
        first(configs["none"], "early_warning"),
        first(configs["none"], "entropy_collapse"),
        departed,
        (pre[STEPS], twin[STEPS]),
        first(configs["sigma"], "early_warning"),
    )


def validation(config: Config) -> dict[int, float]:
    """Validation loss by step."""
    return {line["step"]: line["val_loss"] for line in read_metrics(config.run_dir) if "val_loss" in line}


def first(config: Config, detector: str) -> int | None:
    """The step of a detector's first alarm."""
    steps = [event["step"] for event in read_events(config.run_dir) if event.get("detector") == detector]
    return min(steps, default=None)


def report(pairs: list[Pair]) -> None:
    """One row for each seed."""
    heads = ("seed", "early warning", "collapse alarm", "loss departs", "lead in steps", "loss pre-LN", "sigmaReparam")
    table = Table(*heads, title=f"Learning rate 3e-2, {STEPS} steps")
    for pair in pairs:
        numbers = (pair.seed, pair.warned, pair.collapsed, pair.departed, pair.lead)
        table.add_row(*("never" if n is None else str(n) for n in numbers), *(f"{loss:.3f}" for loss in pair.losses))
    Console(width=120).print(table)


if __name__ == "__main__":
    raise SystemExit(main())
