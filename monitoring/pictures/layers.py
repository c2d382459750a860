"""One line per layer over steps, the first that passed a limit named: attention logits, and how alike the tokens are.

Letters: S measured steps, L layers, A heads.
"""

from dataclasses import dataclass

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import Normalize
from matplotlib.figure import Figure

from configs.stability import DetectorsConfig
from monitoring.crossings import Crossing, first_crossings
from monitoring.curves import thin
from monitoring.history import History, Steps, Values
from monitoring.pictures.axes import headline, log_axis, step_axis
from monitoring.style import LIGHT, end_labels

NAMED = 8
"""Layers up to which every line has its name at its end."""


@dataclass(frozen=True)
class Lines:
    """What is drawn: `value_SL`, a line per layer, and the limit with the layers that passed it, earliest first."""

    step_S: Steps
    value_SL: Values
    limit: float
    first: list[Crossing]

    @property
    def named(self) -> list[int]:
        """Layers whose names are written: all when they are few, else the first to pass and the lowest and highest."""
        layers = self.value_SL.shape[1]
        if layers <= NAMED:
            return list(range(layers))
        ends = np.nan_to_num(self.value_SL[-1], nan=-np.inf)
        chosen = [crossing.layer for crossing in self.first[:1]] + [int(ends.argmax()), int(ends.argmin())]
        return list(dict.fromkeys(chosen))


def largest_logits(history: History, detectors: DetectorsConfig) -> Figure | None:
    """Largest |attention logit| of each layer, on a log axis, with the limits of warning and collapse."""
    step_S, logit_SLA = history.signal("max_logit")
    if step_S.size < 2:
        return None
    limit = detectors.logit.warning
    lines = Lines(
        step_S, np.fmax.reduce(logit_SLA, axis=2), limit, first_crossings(step_S, logit_SLA, limit, below=False)
    )
    figure, axes = _figure(_title(lines, "Attention logits", "{:,.0f}"), lines)
    if (lines.value_SL > 0).any():
        log_axis(axes)
    axes.set_ylabel("largest attention logit of the layer")
    _finish(axes, lines, f"limit {limit:,.0f}")
    return figure


def token_cosines(history: History, detectors: DetectorsConfig) -> Figure | None:
    """Mean cosine between the tokens of a sequence after each layer: at 1 they are all the same."""
    step_S, cosine_SL = history.signal("token_cosine")
    if step_S.size < 2:
        return None
    limit = detectors.rank.cosine
    lines = Lines(
        step_S, cosine_SL, limit, first_crossings(step_S, cosine_SL, limit, below=False, lasting=detectors.rank.steps)
    )
    figure, axes = _figure(_title(lines, "Likeness of tokens", "{:.2f}"), lines)
    axes.set_ylim(min(0.0, float(np.nanmin(cosine_SL, initial=0.0))), 1.04)
    axes.set_ylabel("mean cosine between the tokens of a sequence\n(1: all the same, rank collapse)")
    _finish(axes, lines, f"limit {limit:g}")
    return figure


def _title(lines: Lines, what: str, number: str) -> str:
    limit = number.format(lines.limit)
    if lines.first:
        first, others = lines.first[0], len(lines.first) - 1
        more = f"; {others} of the other {lines.value_SL.shape[1] - 1} layers followed" if others else ""
        return f"{what} passed {limit}: {first.place} first, at step {first.step:,}{more}"
    if not np.isfinite(lines.value_SL).any():
        return f"{what}: not a number"
    highest = np.nanmax(lines.value_SL)
    step, layer = np.argwhere(lines.value_SL == highest)[0]
    how = f"passed {limit} for a short while only" if highest > lines.limit else f"stayed under {limit}"
    return f"{what} {how}: at most {number.format(highest)}, in layer {layer} at step {lines.step_S[step]:,}"


def _figure(title: str, lines: Lines) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(11.5, 4.8))
    axes = figure.subplots()
    headline(figure, title)
    for layer in range(lines.value_SL.shape[1]):
        strong = layer in lines.named
        axes.plot(
            *thin(lines.step_S, lines.value_SL[:, layer]),
            color=_colour(layer, lines),
            linewidth=2.0 if strong else 1.0,
            alpha=1.0 if strong else 0.6,
        )
    return figure, axes


def _finish(axes: Axes, lines: Lines, limit_text: str) -> None:
    step_axis(axes, lines.step_S)
    low, high = axes.get_ylim()
    if low < lines.limit < 3 * high:  # a limit far above all lines would press them flat
        axes.set_ylim(low, max(high, 1.5 * lines.limit if axes.get_yscale() == "log" else high))
        axes.axhline(lines.limit, color=LIGHT.lines[0], linewidth=1.2, linestyle=(0, (4, 3)))
        axes.annotate(
            limit_text, (0.5, lines.limit), xycoords=("axes fraction", "data"), xytext=(0, 3), ha="center",
            textcoords="offset points", color=LIGHT.lines[0],
        )  # fmt: skip
    if lines.first:
        first = lines.first[0]
        axes.plot(
            [first.step], [first.value], "o", markersize=11, markerfacecolor="none", markeredgecolor=LIGHT.ink,
            markeredgewidth=2, clip_on=False, zorder=5,
        )  # fmt: skip
    last_L = lines.value_SL[-1]
    end_labels(
        axes,
        [
            (f"layer {layer}", float(lines.step_S[-1]), float(last_L[layer]), _colour(layer, lines))
            for layer in lines.named
            if np.isfinite(last_L[layer]) and (last_L[layer] > 0 or axes.get_yscale() == "linear")
        ],
    )


def _colour(layer: int, lines: Lines) -> str:
    """From the first layer, dark, to the last, light; few layers have colours of their own."""
    layers = lines.value_SL.shape[1]
    if layers <= len(LIGHT.lines):
        return LIGHT.lines[(layer + 2) % len(LIGHT.lines)]
    return matplotlib.colors.to_hex(matplotlib.colormaps["viridis"](Normalize(0, layers * 1.15)(layer)))
