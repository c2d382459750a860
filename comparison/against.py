"""`steadytrain compare STUDY --against OTHER`: two studies, recipe by recipe, over what both have.

Compared are recipes of the same name (and shape of the same name) at the learning rates and seeds that both studies
have. A difference is this study's minus the other's, seed by seed; seeds are paired because a seed fixes the data order
and the initial weights in both, which holds as far as their settings agree: the settings that differ are listed. Losses
and LR sensitivities are corrected together for their number (Holm).
"""

import shlex
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.figure import Figure
from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from comparison.analysis import Analysis, RecipeResult, recipe_result
from comparison.difference_plot import Panels, difference_panels
from comparison.ranking import compare_losses, compare_sensitivity
from comparison.report import data_uri, png, render
from comparison.statistics import Difference, holm
from comparison.wording import MANY, listed, rates, some
from configs.atomic import write_atomically
from configs.errors import DataError
from configs.flatten import flatten
from monitoring.style import DARK, LIGHT, Theme, lr_text

SETTINGS_OF_PLACE = ("run.", "tracking.", "optimizer.lr", "training.seed")


@dataclass(frozen=True)
class Pair:
    """A recipe (at a shape) in both studies, over the learning rates and seeds that both have."""

    label: str
    ours: RecipeResult
    theirs: RecipeResult
    loss: Difference | None
    """This study's lowest loss minus the other's; None for fewer than two seeds."""
    sensitivity: Difference | None


@dataclass(frozen=True)
class Against:
    """Two studies side by side."""

    ours: Analysis
    theirs: Analysis
    pairs: list[Pair]
    learning_rates: list[float]
    seeds: list[int]
    settings: dict[str, tuple[Any, Any]]
    """Dotted key to its values here and there, of the settings that differ; a recipe's keys begin with its name."""

    @property
    def names(self) -> tuple[str, str]:
        """Of the studies; their folders where they are called the same."""
        ours, theirs = self.ours.record.name, self.theirs.record.name
        return (ours, theirs) if ours != theirs else (str(self.ours.dir), str(self.theirs.dir))


def against(ours: Analysis, theirs: Analysis) -> Against:
    """Compare two studies. Raises: DataError where no recipe has ended at the same learning rate and seed in both."""
    learning_rates = sorted(set(ours.record.learning_rates) & set(theirs.record.learning_rates))
    seeds = sorted(set(ours.record.seeds) & set(theirs.record.seeds))
    pairs = list(_pairs(ours, theirs))
    if not pairs:
        where = f"{ours.dir} and {theirs.dir}"
        raise DataError(f"{where}: no recipe of the same name has ended at the same learning rate and seed in both")
    return Against(ours, theirs, _corrected(pairs), learning_rates, seeds, _settings(ours, theirs))


def sentences(found: Against) -> list[str]:
    """What the comparison says."""
    ours, theirs = found.names
    compared = [pair for pair in found.pairs if pair.loss is not None]
    said = []
    if not compared:
        seen = "the table has what was seen"
        said.append(f"No recipe can be compared over two seeds: {ours} and {theirs} cannot be told apart; {seen}.")
    for word, key in (("lowest loss", "loss"), ("LR sensitivity", "sensitivity")):
        differences = {pair.label: entry for pair in compared if (entry := getattr(pair, key)) is not None}
        if differences:
            said.append(_sentence(word, differences, ours, theirs))
    only = [name for name in found.ours.record.recipes if name not in {pair.ours.recipe for pair in found.pairs}]
    if only:
        said.append(f"Not compared, because {theirs} has no result of the same learning rate and seed: {some(only)}.")
    keys = list(found.settings)
    if keys:
        more = f" and {len(keys) - MANY} more" if len(keys) > MANY else ""
        said.append(f"The studies differ in {', '.join(keys[:MANY])}{more}: a difference may come from any of them.")
    else:
        said.append("The studies' settings are the same.")
    seeds = ", ".join(map(str, found.seeds))
    said.append(f"Compared at learning rates {rates(found.learning_rates)} and seeds {seeds}, which both have.")
    return said


def _sentence(word: str, differences: Mapping[str, Difference], ours: str, theirs: str) -> str:
    lower = [name for name, entry in differences.items() if entry.shown and entry.mean < 0]
    higher = [name for name, entry in differences.items() if entry.shown and entry.mean > 0]
    if not lower and not higher:
        return f"No difference of the {word} shown between {ours} and {theirs}."
    words = []
    for where, names in ((f"lower in {ours}", lower), (f"higher in {ours}", higher)):
        if names:
            few = len(names) <= MANY
            named = listed(f"{name} ({differences[name]:.3f})" for name in names) if few else some(names)
            words.append(f"{where} with {named}")
    neither = [name for name, entry in differences.items() if not entry.shown]
    if neither:
        words.append(f"no difference shown for {some(neither)}")
    return f"The {word} is {'; '.join(words)}."


def table(found: Against) -> RenderableType:
    """The comparison for a terminal."""
    ours, theirs = found.names
    shown = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for heading in ("recipe", "here", "there", "here minus there", ""):
        shown.add_column(heading, justify="left" if heading == "recipe" else "right", no_wrap=True)
    for pair in found.pairs:
        difference = f"{pair.loss:.3f}" if pair.loss else f"{_seen(pair, _best):+.3f}"
        word, style = ("shown", "bold") if pair.loss and pair.loss.shown else ("", "")
        shown.add_row(
            pair.label, _mean(pair.ours), _mean(pair.theirs), Text(difference, style=style), Text(word, style=style)
        )
    lines = "\n".join(f"- {sentence}" for sentence in sentences(found))
    title = Text(f"Lowest loss in {ours} (here) against {theirs} (there)", style="bold")
    return Group(title, shown, Text(lines))


def write(found: Against) -> Path:
    """Write the comparison as a page into this study's folder."""
    light, dark = _picture(found, LIGHT), _picture(found, DARK)
    ours, theirs = found.names
    page = render(
        "against.html.j2",
        ours=ours,
        theirs=theirs,
        verdict=sentences(found),
        rows=_rows(found),
        picture=None if light is None or dark is None else {"light": data_uri(light), "dark": data_uri(dark)},
        settings=found.settings,
        command=shlex.join(["steadytrain", "compare", str(found.ours.dir), "--against", str(found.theirs.dir)]),
    )
    path = found.ours.dir / f"against-{found.theirs.record.name}.html"
    write_atomically(path, page)
    return path


def _rows(found: Against) -> list[dict[str, Any]]:
    return [
        {
            "name": pair.label,
            "ours": f"{pair.ours.best_loss.mean:.3f} at {lr_text(pair.ours.best_lr)}",
            "theirs": f"{pair.theirs.best_loss.mean:.3f} at {lr_text(pair.theirs.best_lr)}",
            "loss": f"{pair.loss:.3f}" if pair.loss else f"{_seen(pair, _best):+.3f}",
            "loss_shown": pair.loss is not None and pair.loss.shown,
            "sensitivity": f"{pair.sensitivity:.3f}" if pair.sensitivity else f"{_seen(pair, _sensitivity):+.3f}",
            "sensitivity_shown": pair.sensitivity is not None and pair.sensitivity.shown,
        }
        for pair in found.pairs
    ]


def _mean(recipe: RecipeResult) -> str:
    return f"{recipe.best_loss.mean:.3f}"


def _seen(pair: Pair, number: Callable[[RecipeResult], float]) -> float:
    """A difference without interval."""
    return number(pair.ours) - number(pair.theirs)


def _best(recipe: RecipeResult) -> float:
    return recipe.best_loss.mean


def _sensitivity(recipe: RecipeResult) -> float:
    return recipe.lr_sensitivity.mean


def _pairs(ours: Analysis, theirs: Analysis) -> Iterator[Pair]:
    for shape, part in ours.with_results.items():
        other = theirs.with_results.get(shape)
        for name, recipe in part.recipes.items():
            if other is None or name not in other.recipes:
                continue
            counterpart = other.recipes[name]
            both = {(t.lr, t.seed) for t in recipe.ended} & {(t.lr, t.seed) for t in counterpart.ended}
            if both:
                here, there = _only(recipe, both), _only(counterpart, both)
                label = f"{name} · {shape}" if shape else name
                sensitivity = compare_sensitivity(here, there) if len(here.losses) > 1 else None
                yield Pair(label, here, there, compare_losses(here, there), sensitivity)


def _only(recipe: RecipeResult, cells: set[tuple[float, int]]) -> RecipeResult:
    """A recipe's numbers from some of its trials."""
    return recipe_result(recipe.recipe, [trial for trial in recipe.ended if (trial.lr, trial.seed) in cells])


def _corrected(pairs: list[Pair]) -> list[Pair]:
    """The same pairs, their differences corrected together."""
    family = [entry for pair in pairs for entry in (pair.loss, pair.sensitivity) if entry is not None]
    corrected = iter(holm(family))
    return [
        Pair(
            pair.label,
            pair.ours,
            pair.theirs,
            next(corrected) if pair.loss is not None else None,
            next(corrected) if pair.sensitivity is not None else None,
        )
        for pair in pairs
    ]


def _settings(ours: Analysis, theirs: Analysis) -> dict[str, tuple[Any, Any]]:
    """Keys of the base, the budget and the stopping rule, and of recipes and shapes that both have, in which the
    studies differ; where they keep their runs does not count."""
    here, there = _all_settings(ours, theirs), _all_settings(theirs, ours)
    keys = [key for key in dict.fromkeys([*here, *there]) if not key.startswith(SETTINGS_OF_PLACE)]
    return {key: (here.get(key, "-"), there.get(key, "-")) for key in keys if here.get(key) != there.get(key)}


def _all_settings(one: Analysis, other: Analysis) -> dict[str, Any]:
    found = dict(flatten(one.record.base | {"budget": one.record.budget, "stopping": one.record.stopping}))
    for groups, others in ((one.record.recipes, other.record.recipes), (one.record.shapes, other.record.shapes)):
        for name in groups.keys() & others.keys():
            found |= {f"{name}: {key}": value for key, value in groups[name].items()}
    return found


def _picture(found: Against, theme: Theme) -> bytes | None:
    """Differences with their intervals; None for a single seed."""
    ours, theirs = found.names
    panels: Panels = {
        f"lowest loss, {ours} minus {theirs}, nats": {p.label: p.loss for p in found.pairs if p.loss},
        f"LR sensitivity, {ours} minus {theirs}, nats": {p.label: p.sensitivity for p in found.pairs if p.sensitivity},
    }
    with matplotlib.rc_context(theme.rc):
        figure: Figure | None = difference_panels(panels, theme, lambda name: theme.lines[2])
        return None if figure is None else png(figure)
