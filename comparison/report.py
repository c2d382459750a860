"""`steadytrain compare`: PNGs and a self-contained report.html in the study folder, and the table for the terminal."""

import base64
import io
import math
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from comparison import plots, verdict
from comparison.analysis import PLATEAU_NATS, RecipeResult, StudyResult, analyse
from comparison.statistics import Estimate as Spread
from comparison.trial_result import HEAD_RATIO, HEAD_SHARE, LOGIT_ALARM, TrialResult
from configs.atomic import write_atomically
from configs.errors import DataError
from monitoring.style import DARK, LIGHT, Theme, lr_text

REPORT = "report.html"
HEADINGS = ("Recipe", "Best loss", "at LR", "LR sensitivity", "Plateau", "Least entropy", "Max logit", "Collapsed")
CAPTIONS = {
    "collapse-and-cure": (
        "Left: validation loss at the end of training against the learning rate. Middle and right: mean attention "
        "entropy and the largest attention logit during training, at one learning rate. A cross marks collapse."
    ),
    "loss-vs-learning-rate": (
        f"Validation loss after the last step. The band under a line is its plateau: the learning rates within "
        f"{PLATEAU_NATS} nat of the recipe's best. A cross marks a trial whose attention collapsed."
    ),
    "attention-over-steps": (
        "Mean attention entropy as a share of the causal maximum, and the largest logit of any head, at every "
        "learning rate. A cross marks the first step at which attention had collapsed."
    ),
    "entropy-per-head": (
        "Entropy of every attention head over training; dark heads look at almost one token only. Left, the collapsed "
        "trial of the highest learning rate; right, the best trial that did not collapse."
    ),
    "learning-rate-sensitivity": (
        "Mean distance of the loss from the recipe's best over this study's learning rates, each loss clipped at its "
        "initial value (Wortsman et al. 2023)."
    ),
}


def write(study_dir: Path) -> Path:
    """Write the PNGs and report.html of a study; a study of which only a part has run gives a report of that part.

    Raises: DataError where the folder holds no study, or no trial of it has ended.
    """
    result = _analysed(study_dir)
    light = {name: _png(figure) for name, figure in plots.figures(result, LIGHT).items()}
    dark = {name: _png(figure) for name, figure in plots.figures(result, DARK).items()}
    for name, image in light.items():
        (study_dir / f"{name}.png").write_bytes(image)
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    page = environment.get_template("report.html.j2").render(
        record=result.record,
        verdict=verdict.sentences(result),
        figures=[
            {"name": n, "caption": CAPTIONS[n], "alt": _alt(n, result), "light": _uri(light[n]), "dark": _uri(dark[n])}
            for n in light
        ],
        headings=HEADINGS,
        recipes=[
            {"name": name, "colour": _colours(result, name), "cells": cells} for name, cells in _rows(result).items()
        ],
        trials=[_trial_row(trial, result) for trial in result.trials],
        settings={name: keys or {"(the base as it is)": ""} for name, keys in result.record.recipes.items()},
        definitions={"head": HEAD_RATIO, "share": HEAD_SHARE, "logit": LOGIT_ALARM, "plateau": PLATEAU_NATS},
        rates=[lr_text(lr) for lr in result.record.learning_rates],
        commands={
            "sweep": f"steadytrain sweep {shlex.quote(str(result.record.source))}",
            "compare": f"steadytrain compare {shlex.quote(str(study_dir))}",
        },
    )
    path = study_dir / REPORT
    write_atomically(path, page)
    return path


def table(study_dir: Path) -> RenderableType:
    """The study for a terminal: loss, entropy and largest logit at the end of training, per recipe and learning rate,
    then the verdict. Raises: DataError as `write`."""
    result = _analysed(study_dir)
    shown = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    shown.add_column("learning rate", no_wrap=True)
    for lr in result.record.learning_rates:
        shown.add_column(lr_text(lr), justify="right", no_wrap=True)
    shown.add_column("LR sensitivity", justify="right")
    for name, recipe in result.recipes.items():
        groups = [result.of(name, lr) for lr in result.record.learning_rates]
        shown.add_row(f"[bold]{name}[/bold]", *(_losses(group) for group in groups), f"{recipe.lr_sensitivity:.3f}")
        if not result.single_seed:
            shown.add_row("  ± over seeds", *(_deviation(group) for group in groups))
        shown.add_row("  entropy", *(_last(group, "entropy_ratio", _percent) for group in groups))
        shown.add_row("  max logit", *(_last(group, "max_logit", _big) for group in groups), end_section=True)
    note = Text("Validation loss, entropy (share of its maximum) and max logit at the end of training; ✕: collapsed.")
    lines = "\n".join(f"- {sentence}" for sentence in verdict.sentences(result))
    return Group(Text(f"Study {result.record.name}", style="bold"), shown, note, Text(lines))


def _losses(group: list[TrialResult]) -> Text:
    """Loss over the seeds of one recipe and learning rate; red with a cross where a seed collapsed."""
    collapsed = any(trial.collapsed for trial in group)
    mean = Spread.of(trial.loss for trial in group).mean
    text = "-" if math.isnan(mean) else f"{mean:.3f}"
    return Text(f"✕ {text}" if collapsed else text, style="bold red" if collapsed else "bold")


def _deviation(group: list[TrialResult]) -> str:
    sd = Spread.of(trial.loss for trial in group).sd
    return "-" if sd is None else f"{sd:.3f}"


def _last(group: list[TrialResult], key: str, write_number: Callable[[float], str]) -> Text:
    """A number of summary.json, mean over seeds."""
    values = [trial.summary[key] for trial in group if trial.summary is not None and trial.summary.get(key) is not None]
    style = "red" if any(trial.collapsed for trial in group) else ""
    return Text(write_number(Spread.of(values).mean), style=style)


def _analysed(study_dir: Path) -> StudyResult:
    result = next(iter(analyse(study_dir).parts.values()))
    if not result.recipes:
        raise DataError(f"{study_dir}: no trial has ended yet; run `steadytrain sweep {result.record.source}`")
    return result


def _rows(result: StudyResult) -> dict[str, tuple[str, ...]]:
    """The cells right of each recipe's name."""
    return {name: _cells(recipe, result) for name, recipe in result.recipes.items()}


def _cells(recipe: RecipeResult, result: StudyResult) -> tuple[str, ...]:
    low, high = recipe.plateau
    ended = sum(trial.recipe == recipe.recipe and trial.ended for trial in result.trials)
    rates = ", ".join(lr_text(lr) for lr in sorted({trial.lr for trial in recipe.collapsed}))
    partial = len(recipe.losses) < len(result.record.learning_rates)
    coverage = f" ({len(recipe.losses)} of {len(result.record.learning_rates)} LRs)" if partial else ""
    return (
        f"{recipe.best_loss:.3f}",
        lr_text(recipe.best_lr),
        f"{recipe.lr_sensitivity:.3f}{coverage}",
        lr_text(low) if low == high else f"{lr_text(low)} to {lr_text(high)} ({recipe.plateau_decades:.1f} decades)",
        _percent(recipe.worst_ratio),
        _big(recipe.worst_logit),
        f"{len(recipe.collapsed)} of {ended}" + (f" (at {rates})" if rates else ""),
    )


def _trial_row(trial: TrialResult, result: StudyResult) -> dict[str, Any]:
    summary = trial.summary or {}
    if trial.summary is not None:
        state = summary["status"]
    elif trial.failure is not None:
        state = f"failed: {trial.failure}"
    else:
        state = "running or interrupted" if trial.step_S.size else "not run"
    return {
        "recipe": trial.recipe,
        "colour": _colours(result, trial.recipe),
        "lr": lr_text(trial.lr),
        "seed": trial.seed,
        "state": state,
        "loss": f"{trial.loss:.3f}" if trial.ended else "-",
        "ratio": _percent(trial.worst_ratio),
        "logit": _big(trial.worst_logit),
        "collapse": f"step {trial.collapse_step}" if trial.collapsed else "",
        "speed": f"{summary['tokens_per_s']:,.0f}" if summary.get("tokens_per_s") else "-",
        "run_dir": str(trial.run_dir),
        "command": f"steadytrain train {shlex.quote(str(trial.config))} --overwrite",
    }


def _colours(result: StudyResult, recipe: str) -> dict[str, str]:
    index = list(result.record.recipes).index(recipe)
    return {"light": _line(LIGHT, index), "dark": _line(DARK, index)}


def _line(theme: Theme, index: int) -> str:
    return theme.lines[index % len(theme.lines)]


def _alt(name: str, result: StudyResult) -> str:
    """A picture in words for those who cannot see it: what it plots, and what it shows."""
    return f"{CAPTIONS[name]} {' '.join(verdict.sentences(result))}"


def _png(figure: Any) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=160, metadata={"Software": None})
    return buffer.getvalue()


def _uri(png: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(png).decode()


def _percent(ratio: float) -> str:
    return "-" if math.isnan(ratio) else f"{ratio:.0%}"


def _big(value: float) -> str:
    """Three figures, and words for what is larger: 63, 4.2k, 3.1M."""
    if math.isnan(value):
        return "-"
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size and math.isfinite(value):
            return f"{value / size:.3g}{letter}"
    return f"{value:.3g}"
