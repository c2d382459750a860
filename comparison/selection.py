"""A part of a study, for a sweep that runs not all of it now."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any

from comparison.study import Study, Trial
from configs.describe import either
from configs.errors import ConfigError


@dataclass(frozen=True)
class Selection:
    """What the command line names, as text: values joined by commas; None is all of the study."""

    recipes: str | None = None
    shapes: str | None = None
    learning_rates: str | None = None
    seeds: str | None = None

    def of(self, study: Study) -> list[Trial]:
        """The study's trials that are meant. Raises: ConfigError for a value that the study does not have."""
        recipes = _chosen("--recipes", self.recipes, list(study.recipes), str)
        shapes = _chosen("--shapes", self.shapes, list(study.shapes), str)
        rates = _chosen("--learning-rates", self.learning_rates, study.learning_rates, float)
        seeds = _chosen("--seeds", self.seeds, study.seeds, int)
        return [
            trial
            for trial in study.trials
            if trial.recipe in recipes
            and (trial.shape in shapes or not study.shapes)
            and trial.lr in rates
            and trial.seed in seeds
        ]


ALL = Selection()


def _chosen(option: str, text: str | None, there: Sequence[Any], parse: Callable[[str], Any]) -> list[Any]:
    if text is None:
        return list(there)
    chosen = []
    for part in text.split(","):
        try:
            value = parse(part.strip())
        except ValueError:
            value = None
        if value not in there:
            raise ConfigError(f"command line: {option} = {part.strip()}: {_not_there(part.strip(), there)}")
        chosen.append(value)
    return chosen


def _not_there(text: str, there: Sequence[Any]) -> str:
    if not there:
        return "the study has none"
    names = [f"{value:g}" if isinstance(value, float) else str(value) for value in there]
    nearest = get_close_matches(text, names, 1) if isinstance(there[0], str) else []
    return (
        f"not in the study; did you mean {nearest[0]}?" if nearest else f"not in the study, which has {either(names)}"
    )
