"""A study file, and the trials it stands for: recipe x learning rate x seed, each a complete `Config`.

Trials are paired. All trials of one seed share `training.seed`, so sample k of step s is the same text for every recipe
and learning rate, and every parameter that has the same name and shape in two recipes starts from the same values
(initial weights are drawn per parameter from (seed, name)). What a recipe adds (gamma, QK-norm gains) has no partner.
Losses of one seed may therefore be compared directly; seeds are the unit of repetition.
"""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, ValidationError, field_validator

from configs.describe import shown
from configs.errors import ConfigError
from configs.files import COMMAND_LINE, read
from configs.flatten import flatten
from configs.load import load
from configs.schema import Config
from configs.section import Section

Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._+-]*$")]
ALLOWED = {
    "name": "must start with a letter or digit and go on with letters, digits, '.', '_', '+' or '-'",
    "base": "must be the path of a complete configuration, relative to the study file",
    "overrides": "must be sections as in a configuration",
    "recipes": "must map at least one name (letters, digits, '.', '_', '+', '-') to a YAML file or to sections",
    "learning_rates": "must be a list of different numbers > 0",
    "seeds": "must be a list of different whole numbers >= 0",
}

SET_BY_STUDY = {
    "optimizer.lr": "a study takes it from learning_rates",
    "training.seed": "a study takes it from seeds",
    "run.name": "a study names its trials",
}


class StudyFile(Section):
    """What a study's YAML file may say; paths are relative to the file."""

    name: Name
    """Name of the study; its folder is `<run.dir of the base>/<name>`."""
    base: Path
    """Complete configuration that every trial starts from."""
    overrides: dict[str, Any] = Field({})
    """Sections and keys that replace the base's, for all recipes."""
    recipes: dict[Name, Path | dict[str, Any]] = Field(min_length=1)
    """Recipe by name: a YAML file of sections, or the sections themselves. The first is the baseline."""
    learning_rates: list[Annotated[float, Field(gt=0, allow_inf_nan=False)]] = Field(min_length=1)
    """Values of `optimizer.lr`."""
    seeds: list[Annotated[int, Field(ge=0)]] = Field([0], min_length=1)
    """Values of `training.seed`."""

    @field_validator("learning_rates", "seeds")
    @classmethod
    def _sorted_and_distinct(cls, values: list[float]) -> list[float]:
        if len(set(values)) < len(values):
            raise ValueError("each value may occur once")
        return sorted(values)


@dataclass(frozen=True, eq=False)
class Trial:
    """One run of a study; compared and hashed by identity."""

    recipe: str
    lr: float
    seed: int
    config: Config

    @property
    def label(self) -> str:
        return f"{self.recipe}  lr {format_lr(self.lr)}  seed {self.seed}"

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
    """Study folder: `<run.dir>/<name>`, with `trials/<recipe>/lr-<lr>/seed-<seed>/` below it."""
    base: Config
    recipes: dict[str, dict[str, Any]]
    """Recipe name to the dotted keys it sets."""
    learning_rates: list[float]
    seeds: list[int]
    trials: list[Trial]


def load_study(path: Path, overrides: Sequence[str] = ()) -> Study:
    """Read a study file and resolve its trials, those of one seed and learning rate side by side.

    `overrides` are `key.sub=value` strings applied to every trial last, before learning rate and seed.
    Raises: ConfigError for a file that is missing, not YAML, or wrong in any key, and for a recipe that does not fit.
    """
    draft = read(path)
    file = _parse(draft.path, draft.values)
    _refuse_shared_folders(draft.path, file.learning_rates)
    recipes = {name: _recipe(path, name, recipe) for name, recipe in file.recipes.items()}
    shared = Layer(f"{draft.path}: overrides", dict(flatten(file.overrides)))
    given = Layer(COMMAND_LINE, {text.partition("=")[0]: None for text in overrides})
    for layer in (shared, *recipes.values(), given):
        _refuse_what_the_study_sets(layer)
    base_path = path.parent / file.base
    base = _load(base_path, [shared], overrides)
    study_dir = base.run.dir / file.name
    trials = []
    for seed in file.seeds:
        for lr in file.learning_rates:
            for name, recipe in recipes.items():
                run = {"run.dir": str(study_dir / "trials"), "run.name": f"{name}/lr-{format_lr(lr)}/seed-{seed}"}
                own = Layer(draft.path, {"optimizer.lr": lr, "training.seed": seed, **run})
                trials.append(Trial(name, lr, seed, _load(base_path, [shared, recipe], overrides, own)))
    settings = {name: recipe.values for name, recipe in recipes.items()}
    return Study(file.name, path, study_dir, base, settings, file.learning_rates, file.seeds, trials)


def format_lr(lr: float) -> str:
    """A learning rate as a folder name that sorts and reads well: 3e-02, 1.5e-03."""
    mantissa, exponent = f"{lr:.6e}".split("e")
    return f"{mantissa.rstrip('0').rstrip('.')}e{exponent}"


@dataclass(frozen=True)
class Layer:
    """Dotted keys with their values, and where they were written."""

    origin: str
    values: dict[str, Any]

    @property
    def assignments(self) -> list[str]:
        return [f"{key}={json.dumps(value)}" for key, value in self.values.items()]  # JSON is YAML


def _refuse_what_the_study_sets(layer: Layer) -> None:
    for key in layer.values:
        if key in SET_BY_STUDY:
            raise ConfigError(f"{layer.origin}: {key}: must not be set here; {SET_BY_STUDY[key]}")


def _refuse_shared_folders(origin: str, learning_rates: Sequence[float]) -> None:
    names = [format_lr(lr) for lr in learning_rates]
    shared = {name: lr for name, lr in zip(names, learning_rates, strict=True) if names.count(name) > 1}
    if shared:
        name, lr = next(iter(shared.items()))
        raise ConfigError(
            f"{origin}: learning_rates: {lr!r} and another are both lr-{name}, the name of their folder; "
            "they must differ in the first 7 digits"
        )


def _recipe(path: Path, name: str, recipe: Path | dict[str, Any]) -> Layer:
    if isinstance(recipe, dict):
        return Layer(f"{path}: recipes.{name}", dict(flatten(recipe)))
    draft = read(path.parent / recipe)
    return Layer(draft.path, dict(flatten(draft.values)))


def _load(path: Path, layers: Sequence[Layer], overrides: Sequence[str], own: Layer | None = None) -> Config:
    """The base with the layers over it, then the command line's overrides, then what the study itself sets."""
    layers = [*layers, Layer(COMMAND_LINE, {text.partition("=")[0]: None for text in overrides})]
    before = [assignment for layer in layers[:-1] for assignment in layer.assignments]
    try:
        return load(path, [*before, *overrides, *(own.assignments if own else [])])
    except ConfigError as error:
        origins = {key: layer.origin for layer in [*layers, *([own] if own else [])] for key in layer.values}
        raise ConfigError("\n".join(_attributed(line, origins) for line in str(error).splitlines())) from None


def _attributed(line: str, origins: dict[str, str]) -> str:
    """To `load` a layer is a command line: name the file that the key comes from instead."""
    match = re.match(rf"{COMMAND_LINE}: ([^\s:=]+)", line)
    if match is None or match[1] not in origins:
        return line
    return origins[match[1]] + line.removeprefix(COMMAND_LINE)


def _parse(origin: str, values: dict[str, Any]) -> StudyFile:
    try:
        return StudyFile.model_validate(values)
    except ValidationError as error:
        keys = dict.fromkeys(str(detail["loc"][0]) for detail in error.errors())
        raise ConfigError("\n".join(f"{origin}: {_problem(key, values)}" for key in keys)) from None


def _problem(key: str, values: dict[str, Any]) -> str:
    """What is wrong with a key of a study file, and what is allowed."""
    if key not in ALLOWED:
        nearest = get_close_matches(key, ALLOWED, 1)
        hint = f"did you mean {nearest[0]}?" if nearest else f"a study has {', '.join(ALLOWED)}"
        return f"{key}: no such key; {hint}"
    return f"{key} = {shown(values[key])}: {ALLOWED[key]}" if key in values else f"{key}: must be set: {ALLOWED[key]}"
