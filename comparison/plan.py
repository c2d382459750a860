"""What a sweep would run, in words: `steadytrain sweep --dry-run`."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from comparison.selection import ALL, Selection
from comparison.study import Study, Trial, load_study
from comparison.trials import unfinished
from data.manifest import read_manifest


def dry_run(path: Path, overrides: Sequence[str] = (), only: Selection = ALL) -> list[str]:
    """Lines that say what a sweep would run. Nothing is run or written.

    Raises: ConfigError for a wrong study file or `only`, or a study that no longer says what a finished trial ran.
    """
    study = load_study(path, overrides)
    asked = only.of(study)
    return list(_lines(study, asked, unfinished(study, asked)))


def planned(path: Path, overrides: Sequence[str] = (), only: Selection = ALL) -> dict[str, Any]:
    """The same for scripts, trial by trial. Raises as `dry_run`."""
    study = load_study(path, overrides)
    asked = only.of(study)
    pending = set(map(id, unfinished(study, asked)))
    return {
        "study": study.name,
        "dir": str(study.dir),
        "trials": [
            {
                "recipe": trial.recipe,
                "shape": trial.shape,
                "learning_rate": trial.lr,
                "seed": trial.seed,
                "steps": trial.config.training.steps,
                "tokens": trial.tokens,
                "has_result": id(trial) not in pending,
            }
            for trial in asked
        ],
    }


def require_data(path: Path, overrides: Sequence[str] = (), only: Selection = ALL) -> None:
    """Raise DataError unless all data that a sweep would read have been prepared; better now than once per trial."""
    study = load_study(path, overrides)
    sources = {source.path for trial in unfinished(study, only.of(study)) for source in trial.config.data.sources}
    for source in sorted(sources):
        read_manifest(source)


def counts(study: Study) -> str:
    """The grid in words: `3 recipes x 2 shapes x 4 learning rates x 1 seed`."""
    numbers = {"recipe": len(study.recipes), "learning rate": len(study.learning_rates), "seed": len(study.seeds)}
    if study.shapes:
        numbers = {"recipe": numbers.pop("recipe"), "shape": len(study.shapes), **numbers}
    return " x ".join(plural(count, name) for name, count in numbers.items())


def plural(count: int, name: str) -> str:
    """`1 seed`, `3 seeds`."""
    return f"{count} {name}{'' if count == 1 else 's'}"


def _lines(study: Study, trials: Sequence[Trial], pending: Sequence[Trial]) -> Iterator[str]:
    """The study, the trials of each recipe and shape with their steps and tokens, and all tokens.

    `trials`: those asked for; `pending`: those of them without a result.
    """
    yield f"Study {study.name}: {plural(len(study.trials), 'trial')} ({counts(study)}), in {study.dir}"
    groups: dict[tuple[str, str], list[Trial]] = {}
    for trial in trials:
        groups.setdefault((trial.recipe, trial.shape), []).append(trial)
    width = max(len(_name(*group)) for group in groups) if groups else 0
    for group, members in groups.items():
        rates, seeds = ({getattr(trial, key) for trial in members} for key in ("lr", "seed"))
        yield (
            f"  {_name(*group):<{width}}  {plural(len(rates), 'learning rate')} x {plural(len(seeds), 'seed')}, each "
            f"{members[0].config.training.steps:,} steps, {members[0].tokens:,} tokens"
        )
    asked = "" if len(trials) == len(study.trials) else f" of the {plural(len(trials), 'trial')} asked for"
    tokens = sum(trial.tokens for trial in pending)
    yield f"To run: {len(pending)}{asked}, {tokens:,} tokens; {len(trials) - len(pending)} have a result"


def _name(recipe: str, shape: str) -> str:
    return f"{recipe}  {shape}" if shape else recipe
