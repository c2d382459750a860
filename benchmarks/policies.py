"""Does each policy bring a run over an injected fault, and how far from the run without the fault does it end?

    .venv/bin/python -m benchmarks.policies

Each row trains the pre-LN model of configs/tiny.yaml, without gradient clipping, for 300 steps: without the fault, with
it, and with it and the policy; the last one twice, which must give the same lines.
"""

import argparse
import os
import tempfile
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from rich.console import Console
from rich.table import Table

from benchmarks import injection
from benchmarks.faults import PRE_LN, make_config, train_with
from data.prepare import prepare
from monitoring.recorder import SPEEDS, read_events, read_metrics, read_summary
from parallel.clock import PARTS
from tests.distributed import spawn

STEPS, AT = 300, 200
SHARED = (*PRE_LN, "optimizer.clip=0", f"training.steps={STEPS}", "training.eval_samples=256", "checkpoint.interval=25")
VARIES = ("seconds", *SPEEDS, *(f"time/{part}" for part in PARTS))


@contextmanager
def garbage_batches(count: int) -> Iterator[None]:
    """So many batches of noise, one after another."""
    with ExitStack() as faults:
        for batch in range(AT, AT + count):
            faults.enter_context(injection.garbage(batch))
        yield


@dataclass(frozen=True)
class Case:
    """A fault and the policy against it."""

    name: str
    fault: partial[AbstractContextManager[None]]
    policy: tuple[str, ...]
    event: str


CASES = (
    Case("5 batches of noise: skip", partial(garbage_batches, 5), ("stability.skip.enabled=true",), "skip"),
    Case(
        "5 batches of noise: roll back",
        partial(garbage_batches, 5),
        ("stability.policy.loss_spike=rollback", "stability.policy.rollback_after=10"),
        "rollback",
    ),
    Case("5 batches of noise: ZClip", partial(garbage_batches, 5), ("stability.zclip.enabled=true",), "clip"),
    Case(
        "learning rate x 30 for 20 steps: lower it",
        partial(injection.lr_pulse, AT, 30.0, 20),
        (
            "stability.policy.loss_spike=lower_lr",
            "stability.policy.grad_spike=lower_lr",
            "stability.policy.lr_factor=0.03",
            "stability.policy.lr_steps=20",
        ),
        "lower_lr",
    ),
)


def main() -> int:
    """Run them and print the table; 0 if every policy acted and gave the same lines twice."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    heads = ("fault: policy", "acts at", "times", "loss without fault", "with it", "with policy", "repeats")
    table = Table(*heads, title=f"Validation loss after {STEPS} steps; the fault comes at step {AT + 1}")
    good = True
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        prepare(["stdlib"], folder / "data", tokenizer="byte", max_bytes=4_000_000, progress=False)
        clean = run(folder, "clean", partial(ExitStack), ())
        for number, case in enumerate(CASES):
            faulty = run(folder, f"{number}-faulty", case.fault, ())
            one, two = (run(folder, f"{number}-{which}", case.fault, case.policy) for which in ("one", "two"))
            actions = [
                event["step"] for event in read_events(folder / "runs" / f"{number}-one") if event["kind"] == case.event
            ]
            same = lines(folder, f"{number}-one") == lines(folder, f"{number}-two")
            good = good and same and bool(actions)
            first = str(actions[0]) if actions else "never"
            losses = (f"{loss:.3f}" for loss in (clean, faulty, one))
            table.add_row(case.name, first, str(len(actions)), *losses, "to the digit" if same and one == two else "NO")
    Console(width=140).print(table)
    return 0 if good else 1


def run(folder: Path, name: str, fault: partial[AbstractContextManager[None]], policy: tuple[str, ...]) -> float:
    """Validation loss at the end."""
    config = make_config(folder, name, 1, *SHARED, *policy)
    spawn(1, train_with, fault, config, timeout=900)
    summary = read_summary(config.run_dir)
    assert summary is not None
    return float(summary["val_loss"])


def lines(folder: Path, name: str) -> list[dict[str, float]]:
    """What a run recorded, without times."""
    records = read_metrics(folder / "runs" / name)
    return [{key: value for key, value in record.items() if key not in VARIES} for record in records]


if __name__ == "__main__":
    raise SystemExit(main())
