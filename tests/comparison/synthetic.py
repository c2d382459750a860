"""Studies from a seeded generator, without training: trials in memory, or run folders for the whole report.

A recipe's loss is a parabola over log10 of the learning rate; what a seed does to all trials is drawn once, what is a
trial's own once more. The widest learning rates are three times as noisy, as high learning rates are.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from comparison.analysis import Analysis, StudyResult, analysed
from comparison.record import StudyRecord, TrialRecord
from comparison.trial_result import TrialResult

GRID = (1e-3, 3e-3, 1e-2, 3e-2, 1e-1, 3e-1)
INITIAL = 5.6
NONE = np.empty((0,))


@dataclass(frozen=True)
class Curve:
    """A recipe: lowest loss, log10 of its learning rate, how fast the loss rises with the squared distance."""

    best: float = 2.3
    centre: float = -1.8
    steepness: float = 0.12

    def __call__(self, lr: float) -> float:
        return self.best + self.steepness * (math.log10(lr) - self.centre) ** 2


def study(
    recipes: Mapping[str, Curve],
    *,
    seeds: int = 3,
    grid: Sequence[float] = GRID,
    noise: float = 0.02,
    draw: int = 0,
    shapes: Mapping[str, dict[str, int]] | None = None,
    curve_of: Mapping[str, Mapping[str, Curve]] | None = None,
) -> Analysis:
    """A finished study in memory; `curve_of[shape][recipe]` where curves depend on the shape."""
    random = np.random.default_rng(draw)
    shared = 0.02 * random.standard_normal(seeds)
    trials = []
    for shape in shapes or [""]:
        for name, curve in recipes.items():
            curve = curve_of[shape][name] if curve_of else curve
            for index, lr in enumerate(grid):
                own = noise * (3 if index >= len(grid) - 2 else 1) * random.standard_normal(seeds)
                for seed in range(seeds):
                    trials.append(trial(name, lr, seed, curve(lr) + shared[seed] + own[seed], shape=shape))
    return analysed(Path("runs/synthetic"), record(recipes, seeds, grid, shapes or {}), trials)


def part(recipes: Mapping[str, Curve], **settings) -> StudyResult:
    """The same, of a study without shapes."""
    return study(recipes, **settings).parts[""]


def record(recipes: Sequence[str] | Mapping[str, object], seeds: int, grid: Sequence[float], shapes) -> StudyRecord:
    return StudyRecord(
        name="synthetic",
        source=Path("configs/studies/synthetic.yaml"),
        recipes={name: {"model.qk_norm": True} if index else {} for index, name in enumerate(recipes)},
        learning_rates=list(grid),
        seeds=list(range(seeds)),
        steps=300,
        tracking_uri=None,
        trials=[],
        base={"model": {"hidden_size": 64, "layers": 4}, "data": {"sources": [{"path": "runs/data/demo-bytes"}]}},
        shapes=shapes,
    )


def trial(recipe: str, lr: float, seed: int, loss: float, *, shape: str = "", **changes) -> TrialResult:
    """A trial that has ended with this loss, nothing measured; `changes` replace fields of the result."""
    name = f"{recipe}/{shape}/lr-{lr:g}/seed-{seed}".replace("//", "/")
    fields = {
        "record": TrialRecord.model_construct(
            recipe=recipe,
            shape=shape,
            lr=lr,
            seed=seed,
            steps=300,
            run_dir=f"trials/{name}",
            config=f"configs/{name}.yaml",
        ),
        "run_dir": Path("runs/synthetic/trials") / name,
        "config": Path("runs/synthetic/configs") / f"{name}.yaml",
        "summary": {"status": "finished", "val_loss": loss, "initial_loss": INITIAL, "tokens_per_s": 20_000.0},
        "stopped": None,
        "failure": None,
        "run_id": None,
        "logged_steps": 300,
        "spikes": 0,
        "step_S": NONE.astype(np.int64),
        "entropy_ratio_S": NONE,
        "max_logit_S": NONE,
        "head_step_S": NONE.astype(np.int64),
        "head_ratio_SLN": NONE,
        "collapse_step": None,
        "rank_collapse_step": None,
    }
    return TrialResult(**(fields | changes))
