"""Low-rank attention at a learning rate at which attention collapses: what becomes of embeddings, logits and loss?

    .venv/bin/python -m benchmarks.mlra --seeds 3

Pre-LN with and without it (`configs/recipes/mlra.yaml`, and each head with factors of its own), the demo study's model
for 300 steps at 3e-2. Chung et al. 2024 hold that embeddings vary less (TEV, the mean over the vocabulary of a row's
standard deviation) and training is more stable.
"""

import argparse
import os
import tempfile
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

from comparison.statistics import paired
from examples.seeds import mean_interval
from examples.training import prepared_bytes, train
from monitoring.recorder import read_signals, read_summary, write_json

TINY = Path(__file__).parents[1] / "configs" / "tiny.yaml"
SHARED = ("model.reparam.kind=none", "optimizer.lr=3e-2", "training.steps=300", "monitoring.zoom_steps=0")
RECIPES = {
    "pre-LN": (),
    "+ low rank": ("model.low_rank.targets=[q,k,v]",),
    "+ low rank per head": ("model.low_rank.targets=[q,k,v]", "model.low_rank.per_head=true"),
}
COLUMNS = {
    "tev": ("TEV", 4),
    "logit": ("log10 of the largest logit", 2),
    "entropy": ("entropy / maximum", 3),
    "loss": ("validation loss", 3),
}


def main() -> int:
    """Train, and print the table: means with 95 % intervals, and paired differences from pre-LN below them."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--out", type=Path, help="folder to keep the runs and numbers.json in")
    chosen = parser.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    with tempfile.TemporaryDirectory() as scratch:
        out = (chosen.out or Path(scratch)).resolve()
        data = prepared_bytes(out / "data")
        ended = {
            name: [
                end_of(train(TINY, data, out / f"run-{i}-{seed}", *SHARED, *more, f"training.seed={seed}"))
                for seed in range(chosen.seeds)
            ]
            for i, (name, more) in enumerate(RECIPES.items())
        }
        write_json(out / "numbers.json", ended)
    Console(width=150).print(table(ended))
    return 0


def end_of(run_dir: Path) -> dict[str, float]:
    """What the last step of a run measured."""
    summary = read_summary(run_dir)
    assert summary is not None
    (_, tev), (_, logit), (_, entropy) = (read_signals(run_dir, name) for name in ("tev", "max_logit", "entropy_ratio"))
    return {
        "tev": float(tev[-1]),
        "logit": float(np.log10(logit[-1].max())),
        "entropy": float(entropy[-1].mean()),
        "loss": float(summary["val_loss"]),
    }


def table(ended: dict[str, list[dict[str, float]]]) -> Table:
    """A row of means for each recipe, and one of differences for all but the first."""
    made = Table("recipe", *(title for title, _ in COLUMNS.values()), title="After 300 steps at 3e-2")
    first = ended["pre-LN"]
    for name, runs in ended.items():
        made.add_row(
            name, *(mean_interval([run[key] for run in runs]).text(digits) for key, (_, digits) in COLUMNS.items())
        )
        if runs is first:
            continue
        differences = (paired(name, "", [r[key] for r in runs], [r[key] for r in first]) for key in COLUMNS)
        made.add_row("  less pre-LN", *(f"{d:.3f}, p = {d.p:.2g}" if d is not None else "-" for d in differences))
    return made


if __name__ == "__main__":
    raise SystemExit(main())
