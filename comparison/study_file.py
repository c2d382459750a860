"""What a study's YAML file may say, and what is said about a wrong one."""

from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import Field, ValidationError, field_validator, model_validator

from configs.describe import shown
from configs.errors import ConfigError
from configs.section import Section

Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._+-]*$")]
ALLOWED = {
    "name": "must start with a letter or digit and go on with letters, digits, '.', '_', '+' or '-'",
    "base": "must be the path of a complete configuration, relative to the study file",
    "overrides": "must be sections as in a configuration",
    "recipes": "must map at least one name (letters, digits, '.', '_', '+', '-') to a YAML file or to sections",
    "shapes": "must map names (letters, digits, '.', '_', '+', '-') to YAML files or to sections",
    "learning_rates": "must be a list of different numbers > 0",
    "seeds": "must be a list of different whole numbers >= 0",
    "budget": "must be {tokens: number > 0} or {flops: number > 0}, of each trial",
    "stopping": "must have above_initial (steps, a whole number >= 1, or null) or behind (nats > 0), and may have "
    "after (a share of the steps, >= 0 and < 1)",
}


class Budget(Section):
    """What each trial may spend; exactly one of the two."""

    tokens: float | None = Field(None, gt=0)
    """Training tokens."""
    flops: float | None = Field(None, gt=0)
    """Floating-point operations by 6 x parameters x tokens (`comparison.budget`)."""

    @model_validator(mode="after")
    def _one(self) -> Self:
        if (self.tokens is None) == (self.flops is None):
            raise ValueError("exactly one of tokens and flops")
        return self


class StoppingRule(Section):
    """When a trial is hopeless (`comparison.stopping`)."""

    after: float = Field(0.25, ge=0, lt=1)
    """Share of a trial's steps that are left in peace."""
    above_initial: int | None = Field(50, ge=1)
    """Consecutive steps with a training loss above that of step 1; null: off."""
    behind: float | None = Field(None, gt=0)
    """Nats behind the best trial of the same recipe, shape and seed at the same step; null: off."""

    @model_validator(mode="after")
    def _any(self) -> Self:
        if self.above_initial is None and self.behind is None:
            raise ValueError("no rule")
        return self


class StudyFile(Section):
    """A study file; paths are relative to it."""

    name: Name
    """Name of the study; its folder is `<run.dir of the base>/<name>`."""
    base: Path
    """Configuration that every trial starts from; complete together with `overrides`."""
    overrides: dict[str, Any] = Field({})
    """Sections and keys that replace the base's, for all recipes."""
    recipes: dict[Name, Path | dict[str, Any]] = Field(min_length=1)
    """Recipe by name: a YAML file of sections, or the sections themselves. The first is the baseline."""
    shapes: dict[Name, Path | dict[str, Any]] = Field({})
    """Width, depth and the like by name, as recipes; every recipe is run in each. None: the shape of the base."""
    learning_rates: list[Annotated[float, Field(gt=0, allow_inf_nan=False)]] = Field(min_length=1)
    """Values of `optimizer.lr`."""
    seeds: list[Annotated[int, Field(ge=0)]] = Field([0], min_length=1)
    """Values of `training.seed`."""
    budget: Budget | None = None
    """What sets `training.steps` of each trial; default: the configurations do."""
    stopping: StoppingRule | None = None
    """When a hopeless trial is ended before its last step; default: never."""

    @field_validator("learning_rates", "seeds")
    @classmethod
    def _sorted_and_distinct(cls, values: list[float]) -> list[float]:
        if len(set(values)) < len(values):
            raise ValueError("each value may occur once")
        return sorted(values)


def parse(origin: str, values: dict[str, Any]) -> StudyFile:
    """Validate a study file's values. Raises: ConfigError, one line for each wrong key."""
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
