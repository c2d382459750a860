"""Faults put into runs on purpose: which detector sees each, how soon, and what the record names first.

    .venv/bin/python -m benchmarks.faults                 the faults
    .venv/bin/python -m benchmarks.faults --healthy 10    and ten healthy runs of 500 steps, which must raise no alarm

All train the same small byte-level model on the standard library's source. The fault comes at step 200, counted from
1; "after" counts steps from there to the first alarm of the expected detector.
"""

import argparse
import os
import tempfile
from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks import injection
from configs.checks import resolve
from configs.load import load
from configs.schema import Config
from data.prepare import prepare
from monitoring.recorder import read_events
from stability.culprit import examine
from stability.record import Record, path_of, record_ids
from tests.distributed import spawn
from training.run import train

TINY = Path(__file__).parents[1] / "configs" / "tiny.yaml"
AT, STEPS = 200, 240
PRE_LN = ("model.reparam.kind=none", "optimizer.lr=1e-3")
SIGMA = ("model.reparam.kind=sigma", "optimizer.lr=1e-2")
TP2 = ("parallel.tp=2",)


@dataclass(frozen=True)
class Case:
    """A fault, what it is put into, and who is to see it."""

    name: str
    fault: partial[AbstractContextManager[None]]
    recipe: tuple[str, ...]
    expected: str
    within: int
    """Steps after which the alarm counts as late."""
    place: str
    """What the record must name."""
    world_size: int = 1


UP = "layers.2.feedforward.up"
CASES = (
    Case("garbage batch", partial(injection.garbage, AT - 1), PRE_LN, "loss_spike", 0, "batch 199"),
    Case("learning rate x 100 for 3 steps", partial(injection.lr_pulse, AT - 1, 100, 3), PRE_LN, "loss_spike", 5, ""),
    Case(
        "gradients of layer 2 x 1000",
        partial(injection.scaled_gradients, AT - 1, 2, 1000.0, 3),
        SIGMA,
        "grad_spike",
        0,
        "layers.2",
    ),
    Case(
        "NaN in a gradient of rank 1 (dp 2)",
        partial(injection.nan_gradient, AT - 1, 1, f"{UP}.weight"),
        SIGMA,
        "non_finite",
        0,
        "rank 1",
        2,
    ),
    Case(
        "NaN in a gradient of rank 1 (tp 2)",
        partial(injection.nan_gradient, AT - 1, 1, f"{UP}.weight"),
        (*PRE_LN, *TP2),
        "non_finite",
        0,
        "rank 1",
        2,
    ),
    Case(
        "head 2 of layer 1 gets no gradient",
        partial(injection.frozen_head, AT - 1, 1, 2),
        PRE_LN,
        "frozen_head",
        20,
        "layer 1, head 2",
    ),
    Case(
        "top exponent bit of a weight, tp rank 1, sigmaReparam",
        partial(injection.bit_flip, AT - 1, 1, f"{UP}.weight"),
        (*SIGMA, *TP2),
        "non_finite",
        1,
        f"{UP} ... rank 1",
        2,
    ),
    Case(
        "top exponent bit of a weight, tp rank 1, pre-LN",
        partial(injection.bit_flip, AT - 1, 1, f"{UP}.weight"),
        (*PRE_LN, *TP2),
        "non_finite",
        1,
        f"{UP} ... rank 1",
        2,
    ),
)


@dataclass(frozen=True)
class Outcome:
    """What a run with a fault showed."""

    case: Case
    after: int | None
    """Steps from the fault to the expected detector's first alarm; None: it said nothing."""
    others: list[str]
    before: int
    """Alarms before the fault: false ones."""
    named: list[str]

    @property
    def good(self) -> bool:
        """Seen by the right detector in time, named rightly, and nothing told before."""
        return self.after is not None and self.after <= self.case.within and self.before == 0


def main() -> int:
    """Run them and print the tables; 0 if all is as expected."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--healthy", type=int, default=0, help="healthy runs of 500 steps")
    parser.add_argument("--only", default="", help="only faults whose name contains this")
    arguments = parser.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        prepare(["stdlib"], folder / "data", tokenizer="byte", max_bytes=4_000_000, progress=False)
        outcomes = [run_case(folder, case) for case in CASES if arguments.only in case.name]
        report(outcomes)
        false_alarms = list(healthy(folder, arguments.healthy))
    for line in false_alarms:
        print(line)
    if arguments.healthy:
        print(f"{arguments.healthy} healthy runs of 500 steps: {len(false_alarms)} alarms")
    return 0 if all(outcome.good for outcome in outcomes) and not false_alarms else 1


def run_case(folder: Path, case: Case) -> Outcome:
    """Train with the fault, and read what the run says of itself."""
    name = case.name.replace(" ", "-").replace(",", "").replace("(", "").replace(")", "")
    config = make_config(folder, name, case.world_size, f"training.steps={STEPS}", *case.recipe)
    spawn(case.world_size, train_with, case.fault, config)
    alarms = [event for event in read_events(config.run_dir) if event["kind"] == "alarm"]
    seen = [alarm["step"] - AT for alarm in alarms if alarm["detector"] == case.expected and alarm["step"] >= AT]
    others = sorted({alarm["detector"] for alarm in alarms if alarm["step"] >= AT} - {case.expected})
    ids = record_ids(config.run_dir)
    named = []
    if ids:
        examination = examine(Record.read(path_of(config.run_dir, ids[0])))
        named = [examination.conclusion, *(found.sentence for found in examination.findings[:2])]
    return Outcome(case, min(seen, default=None), others, sum(alarm["step"] < AT for alarm in alarms), named)


def healthy(folder: Path, runs: int) -> Iterator[str]:
    """The alarms of runs without a fault, over recipes and seeds."""
    qk_norm = ("model.qk_norm=true", "model.reparam.kind=none", "optimizer.lr=1e-3")
    recipes = (PRE_LN, SIGMA, qk_norm, ("model.reparam.kind=sigma", "optimizer.lr=3e-2"))
    for number in range(runs):
        recipe = recipes[number % len(recipes)]
        seed = f"training.seed={number}"
        config = make_config(folder, f"healthy-{number}", 1, "training.steps=500", seed, *recipe)
        spawn(1, train, config, timeout=900)
        for event in read_events(config.run_dir):
            if event["kind"] == "alarm":
                yield f"{' '.join(recipe)} {seed}: step {event['step']}: {event['detector']}: {event['reason']}"


def make_config(folder: Path, name: str, world_size: int, *overrides: str) -> Config:
    """configs/tiny.yaml, measured every 10 steps."""
    fixed = (f"data.sources.0.path={folder / 'data'}", f"run.dir={folder / 'runs'}", f"run.name={name}")
    settings = [*fixed, "tracking.kind=none", "monitoring.interval=10", *overrides]
    return resolve(load(TINY, settings), world_size)


def train_with(fault: partial[AbstractContextManager[None]], config: Config) -> Any:
    """One rank of a run with a fault."""
    with fault():
        return train(config)


def report(outcomes: list[Outcome]) -> None:
    """One row for each fault."""
    heads = ("fault", "detector", "after", "alarms before", "also", "the record names first")
    table = Table(*heads, title="Faults at step 200")
    for outcome in outcomes:
        after = "never" if outcome.after is None else str(outcome.after)
        named = "\n".join(outcome.named) or "no record"
        table.add_row(
            outcome.case.name, outcome.case.expected, after, str(outcome.before), ", ".join(outcome.others), named
        )
    Console(width=160).print(table)


if __name__ == "__main__":
    raise SystemExit(main())
