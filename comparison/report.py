"""`steadytrain compare`: PNGs and a self-contained report.html in the study folder."""

import base64
import io
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from matplotlib.figure import Figure
from PIL import Image

from comparison import plots, verdict
from comparison.analysis import PLATEAU_NATS, Analysis
from comparison.report_rows import loss_rows, recipe_rows, stability_rows, trial_rows
from comparison.statistics import SMALLEST_NATS
from comparison.trial_result import HEAD_RATIO, HEAD_SHARE, LOGIT_ALARM, RANK_STEPS, TOKEN_COSINE, UNIFORM_RATIO
from configs.atomic import write_atomically
from configs.errors import DataError
from monitoring.style import DARK, LIGHT, Theme, lr_text

REPORT = "report.html"
FOLDED = 60  # trials from which their table is folded
DEFINITIONS = {
    "head": HEAD_RATIO,
    "share": HEAD_SHARE,
    "logit": LOGIT_ALARM,
    "plateau": PLATEAU_NATS,
    "cosine": TOKEN_COSINE,
    "uniform": UNIFORM_RATIO,
    "rank_steps": RANK_STEPS,
    "smallest": SMALLEST_NATS,
    "clear": verdict.CLEAR_NATS,
}

Pictures = Mapping[str, bytes]
"""PNGs by file stem."""


def write(analysis: Analysis) -> Path:
    """Write the PNGs and report.html of a study; a study of which only a part has run gives a report of that part.

    Raises: DataError where no trial of it has ended.
    """
    require_results(analysis)
    light, dark = draw(analysis, LIGHT), draw(analysis, DARK)
    for name, image in light.items():
        (analysis.dir / f"{name}.png").write_bytes(image)
    path = analysis.dir / REPORT
    write_atomically(path, page(analysis, light, dark))
    return path


def require_results(analysis: Analysis) -> None:
    """Raises: DataError where no trial has ended."""
    if not analysis.with_results:
        raise DataError(f"{analysis.dir}: no trial has ended yet; run `steadytrain sweep {analysis.record.source}`")


def draw(analysis: Analysis, theme: Theme) -> dict[str, bytes]:
    """Every picture of a study as PNG, by file stem."""
    return {name: png(figure) for name, figure in plots.figures(analysis, theme)}


def page(analysis: Analysis, light: Pictures, dark: Pictures) -> str:
    """report.html."""
    record, study_dir = analysis.record, analysis.dir
    return render(
        "report.html.j2",
        record=record,
        steps=sorted({trial.record.steps for trial in analysis.trials}) or [record.steps],
        verdict=verdict.sentences(analysis),
        parts=[
            {"shape": shape, "losses": recipe_rows(part), "stability": stability_rows(part), "cells": loss_rows(part)}
            for shape, part in analysis.with_results.items()
        ],
        figures=[_figure(name, analysis, light[name], dark[name]) for name in light],
        trials=trial_rows(analysis),
        folded=len(analysis.trials) > FOLDED,
        settings={name: keys or {"(the base as it is)": ""} for name, keys in record.recipes.items()},
        definitions=DEFINITIONS,
        rates=[lr_text(lr) for lr in record.learning_rates],
        commands=[
            shlex.join(["steadytrain", "sweep", str(record.source), *record.overrides]),
            f"steadytrain compare {shlex.quote(str(study_dir))}",
        ],
    )


def render(template: str, **values: Any) -> str:
    """A page from one of this folder's templates."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    return environment.get_template(template).render(**values)


def png(figure: Figure) -> bytes:
    """A figure as PNG of 256 colours: a third of the size, and no eye tells the difference in lines and maps."""
    drawn, smaller = io.BytesIO(), io.BytesIO()
    figure.savefig(drawn, format="png", dpi=140)
    Image.open(drawn).convert("RGB").quantize(256, dither=Image.Dither.NONE).save(smaller, "png", optimize=True)
    return smaller.getvalue()


def data_uri(image: bytes) -> str:
    """A PNG within a page."""
    return "data:image/png;base64," + base64.b64encode(image).decode()


def _figure(name: str, analysis: Analysis, light: bytes, dark: bytes) -> dict[str, Any]:
    kind, _, shape = name.partition(".")
    caption = plots.CAPTIONS[kind]
    part = analysis.parts.get(shape)
    shows = verdict.sentences(analysis) if part is None else verdict.of_part(part)
    return {
        "name": name,
        "shape": shape,
        "caption": caption,
        "alt": f"{caption} {next(iter(shows), '')}",  # the rest is in the verdict and the tables
        "light": data_uri(light),
        "dark": data_uri(dark),
        "narrow": kind in plots.NARROW or (kind == "loss-vs-learning-rate" and not _crowded(analysis)),
    }


def _crowded(analysis: Analysis) -> bool:
    """Whether curves have a panel per recipe, which needs the whole width."""
    return len(analysis.record.recipes) > len(LIGHT.lines)
