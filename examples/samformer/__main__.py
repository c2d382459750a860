"""`python -m examples.samformer`: Adam, SAM and sigmaReparam on the toy problem; a figure and numbers in a folder."""

import argparse
from collections.abc import Iterable
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

from comparison.statistics import paired
from examples.figures import write_figure
from examples.samformer.pictures import epochs_figure
from examples.samformer.problem import CHANNELS, FULL
from examples.samformer.trial import Method, Setting, Trainer, Trial
from examples.seeds import mean_interval
from monitoring.recorder import write_json

BEST = 1.0
"""The variance of the noise."""
ADAM, SAM = Method("Adam"), Method("SAM", rho=1.0)
SIGMA, BOTH = Method("sigmaReparam", sigma=True), Method("SAM + sigmaReparam", rho=1.0, sigma=True)
COMPARISONS = (
    ("100 epochs at 3e-3", Setting(lr=3e-3, epochs=100), (ADAM, SAM)),
    ("60 epochs at 1e-2", Setting(lr=1e-2, epochs=60), (ADAM, SIGMA, BOTH)),
)
FULL_SEED = 42


def main() -> int:
    """Train every method with every seed; the first method of a comparison is what the others are held against."""
    parser = argparse.ArgumentParser(prog="python -m examples.samformer", description=__doc__)
    parser.add_argument("--seeds", type=int, default=5, help="how many, at least 2 (default: 5)")
    parser.add_argument("--batch", type=int, default=32, help="series of a step (default: 32)")
    parser.add_argument(
        "--full", action="store_true", help="the size of the paper, its one seed and the next: far longer"
    )
    parser.add_argument("--revin", action="store_true", help="with RevIN, which this problem does not bear")
    parser.add_argument("--out", type=Path, default=Path("runs/examples/samformer"), help="folder for what it leaves")
    chosen = parser.parse_args()
    if chosen.seeds < 2:
        parser.error(f"--seeds = {chosen.seeds}: an interval needs at least 2")
    if chosen.batch < 1:
        parser.error(f"--batch = {chosen.batch}: must be at least 1")
    seeds = (FULL_SEED, FULL_SEED + 1) if chosen.full else range(chosen.seeds)
    chosen.out.mkdir(parents=True, exist_ok=True)
    console = Console(width=120)
    results: dict[str, dict[str, list[Trial]]] = {}
    for title, setting, methods in COMPARISONS:
        size = FULL if chosen.full else setting.size
        setting = replace(setting, norm=chosen.revin, batch=chosen.batch, size=size)
        results[title] = {m.name: [Trainer(m, setting, seed).run() for seed in seeds] for m in methods}
        console.print(table(title, results[title], len(seeds)))
    trials = {title: {name: [asdict(t) for t in ts] for name, ts in of.items()} for title, of in results.items()}
    write_json(chosen.out / "numbers.json", trials)
    write_figure(partial(epochs_figure, results, BEST), chosen.out, "samformer")
    console.print(f"Figure and numbers: {chosen.out}", markup=False)
    return 0


def table(title: str, methods: dict[str, list[Trial]], seeds: int) -> Table:
    """Means at the end with 95 % intervals, and the paired difference from the first method's validation loss."""
    heads = ("method", "train", "validation", "test", f"less {next(iter(methods))}'s", "entropy", "sharpness")
    made = Table(
        *heads, title=f"{title}, {seeds} seeds (best possible: {BEST:g}; entropy at most {np.log(CHANNELS):.2f})"
    )
    first = [trial.val[-1] for trial in next(iter(methods.values()))]
    for name, trials in methods.items():
        val = [trial.val[-1] for trial in trials]
        difference = None if val == first else paired(name, "", val, first)
        made.add_row(
            name,
            _mean(trial.train[-1] for trial in trials),
            mean_interval(val).text(),
            mean_interval([trial.test for trial in trials]).text(),
            "" if difference is None else f"{difference:.3f}, p = {difference.p:.2g}",
            _mean(trial.entropy[-1] for trial in trials),
            _mean(trial.sharpness[-1] for trial in trials),
        )
    return made


def _mean(values: Iterable[float]) -> str:
    return f"{np.mean(list(values)):.3f}"


if __name__ == "__main__":
    raise SystemExit(main())
