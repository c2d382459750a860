"""A study and the trials it stands for: recipe x shape x learning rate x seed, each a complete `Config`.

Trials are paired. All trials of one seed share `training.seed`, so sample k of step s is the same text for every
recipe and learning rate, and for every shape with the same batch and sequence length; and every parameter that has the
same name and shape in two recipes starts from the same values (initial weights are drawn per parameter from (seed,
name)). What a recipe adds (gamma, QK-norm gains) has no partner. Losses of one seed may therefore be compared directly;
seeds are the unit of repetition.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any

from comparison.budget import steps_within
from comparison.layers import Layer, command_line, load_layers, read_layer, refuse
from comparison.study_file import Budget, StoppingRule, StudyFile, parse
from configs.describe import shown
from configs.errors import ConfigError
from configs.files import read
from configs.flatten import flatten
from configs.schema import Config

SET_BY_STUDY = {
    "optimizer.lr": "a study takes it from learning_rates",
    "training.seed": "a study takes it from seeds",
    "run.name": "a study names its trials",
}
SET_BY_BUDGET = {"training.steps": "the study's budget sets it"}
NO_SHAPE = ""
ENDLESS = 10**12  # steps: no schedule is too long for it


@dataclass(frozen=True, eq=False)
class Trial:
    """One run of a study; compared and hashed by identity."""

    recipe: str
    shape: str
    """Empty where the study has no shapes."""
    lr: float
    seed: int
    config: Config

    @property
    def label(self) -> str:
        shape = f"  {self.shape}" if self.shape else ""
        return f"{self.recipe}{shape}  lr {format_lr(self.lr)}  seed {self.seed}"

    @property
    def tokens(self) -> int:
        """Training tokens, from the first step to the last."""
        training = self.config.training
        return training.steps * training.global_batch_size * training.sequence_length

    def tracked_under(self, uri: str | None, parent_run_id: str | None) -> "Trial":
        """The same trial, its MLflow run a child of the study's."""
        tracking = self.config.tracking.model_copy(update={"uri": uri, "parent_run_id": parent_run_id})
        return replace(self, config=self.config.model_copy(update={"tracking": tracking}))


@dataclass(frozen=True)
class Study:
    """A study file with everything resolved."""

    name: str
    path: Path
    dir: Path
    """Study folder: `<run.dir>/<name>`, with `trials/<recipe>[/<shape>]/lr-<lr>/seed-<seed>/` below it."""
    base: Config
    recipes: dict[str, dict[str, Any]]
    """Recipe name to the dotted keys it sets."""
    shapes: dict[str, dict[str, Any]]
    """Shape name to the dotted keys it sets; empty where the study has none."""
    learning_rates: list[float]
    seeds: list[int]
    budget: Budget | None
    stopping: StoppingRule | None
    overrides: list[str]
    """`key.sub=value` of the command line."""
    trials: list[Trial]


def load_study(path: Path, overrides: Sequence[str] = ()) -> Study:
    """Read a study file and resolve its trials, those of one seed and learning rate side by side.

    `overrides` are `key.sub=value` strings applied to every trial last, before learning rate and seed.
    Raises: ConfigError for a file that is missing, not YAML, or wrong in any key, and for a recipe or shape that does
    not fit; DataError where a budget in FLOPs needs data that are not there.
    """
    draft = read(path)
    file = parse(draft.path, draft.values)
    _refuse_shared_folders(draft.path, file.learning_rates)
    recipes = {name: read_layer(path, f"recipes.{name}", recipe) for name, recipe in file.recipes.items()}
    shapes = {name: read_layer(path, f"shapes.{name}", shape) for name, shape in file.shapes.items()}
    shared = Layer(f"{draft.path}: overrides", dict(flatten(file.overrides)))
    for layer in (shared, *recipes.values(), *shapes.values(), command_line(overrides)):
        refuse(layer, SET_BY_STUDY if file.budget is None else SET_BY_STUDY | SET_BY_BUDGET)
    _refuse_ambiguous(recipes, shapes)
    endless = _steps(draft.path, ENDLESS) if file.budget is not None else None
    base = load_layers(path.parent / file.base, [shared], overrides, endless)
    study_dir = base.run.dir / file.name
    builder = _Builder(draft.path, file, path.parent / file.base, study_dir, shared, overrides)
    return Study(
        name=file.name,
        path=path,
        dir=study_dir,
        base=base if file.budget is None else _with_steps(base, steps_within(file.budget, base)),
        recipes={name: recipe.values for name, recipe in recipes.items()},
        shapes={name: shape.values for name, shape in shapes.items()},
        learning_rates=file.learning_rates,
        seeds=file.seeds,
        budget=file.budget,
        stopping=file.stopping,
        overrides=list(overrides),
        trials=list(builder.trials(recipes, shapes)),
    )


def format_lr(lr: float) -> str:
    """A learning rate as a folder name that sorts and reads well: 3e-02, 1.5e-03."""
    mantissa, exponent = f"{lr:.6e}".split("e")
    return f"{mantissa.rstrip('0').rstrip('.')}e{exponent}"


@dataclass(frozen=True)
class _Builder:
    """Makes the trials of one study file."""

    origin: str
    file: StudyFile
    base: Path
    study_dir: Path
    shared: Layer
    overrides: Sequence[str]

    def trials(self, recipes: dict[str, Layer], shapes: dict[str, Layer]) -> Iterator[Trial]:
        pairs = list(product(recipes, shapes or [NO_SHAPE]))
        configs = {pair: self._load(pair, recipes[pair[0]], shapes.get(pair[1])) for pair in pairs}
        for seed, lr, (recipe, shape) in product(self.file.seeds, self.file.learning_rates, pairs):
            yield Trial(recipe, shape, lr, seed, self._at(configs[recipe, shape], Path(recipe, shape), lr, seed))

    def _load(self, pair: tuple[str, str], recipe: Layer, shape: Layer | None) -> Config:
        """The configuration of a recipe in a shape, before the trials' own learning rates, seeds and names."""
        layers = [self.shared, recipe, *([shape] if shape else [])]
        if self.file.budget is None:
            return load_layers(self.base, layers, self.overrides)
        endless = load_layers(self.base, layers, self.overrides, _steps(self.origin, ENDLESS))
        steps = steps_within(self.file.budget, endless)
        try:
            return load_layers(self.base, layers, self.overrides, _steps(self.origin, steps))
        except ConfigError as error:
            trials = f"; the budget is {steps:,} steps of {Path(*pair).as_posix()}"
            raise ConfigError("\n".join(line + trials for line in str(error).splitlines())) from None

    def _at(self, config: Config, folder: Path, lr: float, seed: int) -> Config:
        """Values that the study file's own bounds have checked: one reading serves a whole grid."""
        name = (folder / f"lr-{format_lr(lr)}" / f"seed-{seed}").as_posix()
        return config.model_copy(
            update={
                "run": config.run.model_copy(update={"dir": self.study_dir / "trials", "name": name}),
                "optimizer": config.optimizer.model_copy(update={"lr": lr}),
                "training": config.training.model_copy(update={"seed": seed}),
            }
        )


def _steps(origin: str, steps: int) -> Layer:
    return Layer(origin, {"training.steps": steps})


def _with_steps(config: Config, steps: int) -> Config:
    return config.model_copy(update={"training": config.training.model_copy(update={"steps": steps})})


def _refuse_ambiguous(recipes: dict[str, Layer], shapes: dict[str, Layer]) -> None:
    """A key may be a recipe's or a shape's: with two values, which one wins is nobody's guess."""
    for (recipe, ours), (shape, theirs) in product(recipes.items(), shapes.items()):
        for key in ours.values.keys() & theirs.values.keys():
            if ours.values[key] != theirs.values[key]:
                raise ConfigError(
                    f"{theirs.origin}: {key} = {shown(theirs.values[key])}: recipe {recipe} sets it to "
                    f"{shown(ours.values[key])}, and shape {shape} must not set it otherwise"
                )


def _refuse_shared_folders(origin: str, learning_rates: Sequence[float]) -> None:
    names = [format_lr(lr) for lr in learning_rates]
    shared = {name: lr for name, lr in zip(names, learning_rates, strict=True) if names.count(name) > 1}
    if shared:
        name, lr = next(iter(shared.items()))
        raise ConfigError(
            f"{origin}: learning_rates: {lr!r} and another are both lr-{name}, the name of their folder; "
            "they must differ in the first 7 digits"
        )
