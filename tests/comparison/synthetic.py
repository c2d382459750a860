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
from comparison.record import StudyRecord, TrialRecord, write_record
from comparison.trial_result import TrialResult
from monitoring.recorder import METRICS, SIGNALS, SUMMARY, append_event, json_line, write_json

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


def gathered(recipes: Sequence[str], trials: Sequence[TrialResult], *, seeds: int, grid: Sequence[float]) -> Analysis:
    """A study of these trials."""
    return analysed(Path("runs/synthetic"), record(recipes, seeds, grid, {}), trials)


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


def write_study(folder: Path, recipes: Mapping[str, Curve], *, seeds: int = 3, grid: Sequence[float] = GRID) -> Path:
    """Run folders of a study with all that a report shows; recipes whose name begins with `pre` collapse at high
    learning rates, those with `post` lose their rank, `no` diverges."""
    random = np.random.default_rng(0)
    planned = record(list(recipes), seeds, grid, {})
    shared = 0.02 * random.standard_normal(seeds)
    for name, curve in recipes.items():
        for index, lr in enumerate(grid):
            for seed in range(seeds):
                own = 0.01 * (3 if index >= len(grid) - 2 else 1) * random.standard_normal()
                made = trial(name, lr, seed, curve(lr) + shared[seed] + own).record
                planned.trials.append(made)
                _write_run(folder / made.run_dir, made, curve(lr) + shared[seed] + own, random)
    write_record(planned, folder)
    return folder


def _write_run(run_dir: Path, made: TrialRecord, loss: float, random: np.random.Generator) -> None:
    high = made.lr >= 3e-2
    fate = made.recipe.partition("-")[0] if high else ""
    (run_dir / SIGNALS).mkdir(parents=True, exist_ok=True)
    (run_dir / "mlflow_run_id").write_text(f"{random.integers(2**62):032x}")
    lines, ratio, logit = [], 0.95, 5.0
    for step in range(1, 301):
        line = {"step": step, "loss": loss + (INITIAL - loss) * math.exp(-(step - 1) / 40)}
        if step == 1 or step % 20 == 0:
            ratio = {"pre": 0.95 * math.exp(-step / 60), "post": 0.99}.get(fate, 0.95 - 0.0004 * step)
            logit = 5 * math.exp(step / 45) if fate == "pre" else 5 + step / 40
            ratio_LA = ratio * (1 + 0.02 * random.standard_normal((4, 4)))
            cosine_L = np.full(4, 0.999 if fate == "post" and step >= 120 else 0.3)
            np.savez(run_dir / SIGNALS / f"step-{step:08d}.npz", entropy_ratio=ratio_LA, token_cosine=cosine_L)
            line |= {"entropy_ratio": ratio, "max_logit": logit}
        lines.append(json_line(line))
    (run_dir / METRICS).write_text("".join(lines))
    if fate == "pre":
        append_event(run_dir, 90, "alarm", "loss far above its mean", detector="loss_spike", severity="alarm")
    ending = {
        "status": "finished",
        "val_loss": loss,
        "initial_loss": INITIAL,
        "entropy_ratio": ratio,
        "max_logit": logit,
    }
    if fate == "no":
        ending |= {"status": "diverged", "val_loss": math.nan}
    speed = 21_000.0 * (0.9 if "sigma" in made.recipe else 1.0) * (1 + 0.02 * random.standard_normal())
    write_json(run_dir / SUMMARY, ending | {"tokens_per_s": speed, "peak_memory_bytes": 6.1e8, "steps": 300})
