"""Attention entropy of every head over steps; what has collapsed cannot be overlooked.

Letters: S measured steps, L layers, A heads, R rows of the picture, C its columns.
"""

from dataclasses import dataclass

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import Colormap
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from configs.stability import DetectorsConfig, EntropyConfig
from monitoring.crossings import Crossing, first_crossings
from monitoring.curves import stretches
from monitoring.history import History, Steps, Values
from monitoring.pictures.axes import headline, step_axis
from monitoring.style import LIGHT

MOST_ROWS, MOST_COLUMNS, MOST_NAMES = 1200, 1000, 80
COLLAPSED, UNKNOWN = LIGHT.lines[0], "#9aa5b1"


@dataclass(frozen=True)
class HeatMap:
    """What is drawn. `ratio_RC`: entropy over the causal maximum; a row is a head, or a layer's lowest head where the
    heads are too many to see. `edge_C` (C + 1,): the steps between which a column lies."""

    ratio_RC: Values
    edge_C: Values
    rows_per_layer: int
    first: list[Crossing]
    """The first collapsed head of each layer that has one, earliest first."""
    lost: dict[int, int]
    """Layers with an entropy that is not a number, and the first step it was so."""
    collapsed_share: float
    """Share of heads collapsed at the worst measurement."""

    @property
    def layers(self) -> int:
        return self.ratio_RC.shape[0] // self.rows_per_layer

    def row(self, crossing: Crossing) -> int:
        """The row that shows a head."""
        head = crossing.head or 0
        return crossing.layer * self.rows_per_layer + (head if self.rows_per_layer > 1 else 0)


def heat_map(step_S: Steps, ratio_SLA: Values, floor: float) -> HeatMap:
    """The heat map of a run: each column has the lowest entropy of its steps, since low is what matters."""
    steps, layers, heads = ratio_SLA.shape
    ratio_SR = ratio_SLA.reshape(steps, -1) if layers * heads <= MOST_ROWS else np.fmin.reduce(ratio_SLA, axis=2)
    isnan_SL = np.logical_or.reduce(np.isnan(ratio_SLA), axis=2)
    parts = stretches(steps, min(steps, MOST_COLUMNS))
    begins = [begin for begin, _ in parts]
    middle_C = np.array([(step_S[begin] + step_S[end - 1]) / 2 for begin, end in parts])
    between_C = (middle_C[1:] + middle_C[:-1]) / 2
    return HeatMap(
        ratio_RC=np.fmin.reduceat(ratio_SR, begins, axis=0).T,
        edge_C=np.concatenate([[step_S[0] - 0.5], between_C, [step_S[-1] + 0.5]]),
        rows_per_layer=ratio_SR.shape[1] // layers,
        first=first_crossings(step_S, ratio_SLA, floor, below=True),
        lost={int(layer): int(step_S[isnan_SL[:, layer].argmax()]) for layer in np.flatnonzero(isnan_SL.any(axis=0))},
        collapsed_share=float((ratio_SLA < floor).mean(axis=(1, 2)).max()),
    )


def entropy_of_heads(history: History, detectors: DetectorsConfig) -> Figure | None:
    """The heat map, the first collapsed head marked, and for each layer the step at which its first head fell."""
    step_S, ratio_SLA = history.signal("entropy_ratio")
    if step_S.size < 2:
        return None
    shown = heat_map(step_S, ratio_SLA, detectors.entropy.floor)
    figure = Figure(figsize=(11.5, min(14.0, max(3.6, 2.3 + 0.13 * shown.ratio_RC.shape[0]))))
    axes = figure.subplots()
    headline(figure, title(shown, step_S, ratio_SLA, detectors.entropy))
    image = axes.pcolorfast(
        shown.edge_C,
        np.arange(shown.ratio_RC.shape[0] + 1.0),
        shown.ratio_RC,
        cmap=_colours(),
        vmin=detectors.entropy.floor,
        vmax=1.0,
    )
    _layer_axis(axes, shown)
    step_axis(axes, step_S)
    bar = figure.colorbar(
        image, ax=axes, pad=0.02, aspect=24, extend="min", extendfrac=0.12, shrink=min(1.0, 4 / figure.get_figheight()),
        anchor=(0, 1),
    )  # fmt: skip
    bar.outline.set_visible(False)
    bar.ax.yaxis.set_major_formatter(PercentFormatter(1.0))
    colours = f"orange: below {detectors.entropy.floor:.0%}, collapsed" + ("; grey: not a number" if shown.lost else "")
    bar.set_label(f"a head's entropy, share of its maximum\n({colours})")
    if shown.first:
        _point_at(axes, shown)
    return figure


def title(shown: HeatMap, step_S: Steps, ratio_SLA: Values, limits: EntropyConfig) -> str:
    """What there is to see, in a sentence."""
    if not shown.first:
        lowest = np.nanmin(ratio_SLA) if np.isfinite(ratio_SLA).any() else np.nan
        if np.isnan(lowest):
            return "Attention entropy is not a number"
        step, layer, head = np.argwhere(ratio_SLA == lowest)[0]
        return f"No head collapsed: the lowest is layer {layer} head {head}, {lowest:.0%} at step {step_S[step]:,}"
    first = shown.first[0]
    if shown.collapsed_share > limits.heads:
        return f"Attention collapsed: {first.place} first, at step {first.step:,}"
    return f"Single heads collapsed, the attention as a whole did not: {first.place} first, at step {first.step:,}"


def _colours() -> Colormap:
    """Pale is healthy, dark is low, and collapse has a colour of its own."""
    return matplotlib.colormaps["Blues_r"].with_extremes(under=COLLAPSED, bad=UNKNOWN)


def _layer_axis(axes: Axes, shown: HeatMap) -> None:
    """Layers by name on the left; on the right when each one's first head collapsed."""
    height, layers = shown.rows_per_layer, shown.layers
    named = range(0, layers, -(-layers // MOST_NAMES))
    middles = [(layer + 0.5) * height for layer in named]
    size = 9 if layers <= 40 else 7
    axes.set_yticks(middles, [f"layer {layer}" for layer in named], fontsize=size)
    axes.set_ylabel("one row per head" if height > 1 else "one row per layer: its lowest head")
    axes.grid(False)
    axes.invert_yaxis()
    for layer in range(1, layers):
        axes.axhline(layer * height, color=LIGHT.paper, linewidth=1.6 if layers <= 40 else 0.4)
    if not shown.first and not shown.lost:
        return
    right = axes.secondary_yaxis("right")
    right.spines["right"].set_visible(False)
    when = {crossing.layer: f"step {crossing.step:,}" for crossing in reversed(shown.first)}
    lost = {layer: f"NaN from step {step:,}" for layer, step in shown.lost.items()}
    right.set_yticks(middles, [when.get(layer, lost.get(layer, "never")) for layer in named], fontsize=size)
    for layer, label in zip(named, right.get_yticklabels(), strict=True):
        label.set_color(COLLAPSED if layer in when else LIGHT.ink if layer in lost else LIGHT.muted)
        label.set_fontweight("bold" if shown.first and layer == shown.first[0].layer else "normal")
    right.set_ylabel("first head collapsed at")


def _point_at(axes: Axes, shown: HeatMap) -> None:
    """Ring and name of the head that was first."""
    first = shown.first[0]
    x, y = first.step, shown.row(first) + 0.5
    left_half = x < (shown.edge_C[0] + shown.edge_C[-1]) / 2
    axes.plot([x], [y], marker="o", markersize=13, markerfacecolor="none", markeredgecolor=LIGHT.ink, markeredgewidth=2)
    axes.annotate(
        f"first: {first.place}, step {first.step:,}",
        (x, y),
        xytext=(34 if left_half else -34, 0),
        textcoords="offset points",
        ha="left" if left_half else "right",
        va="center",
        fontweight="bold",
        bbox={"boxstyle": "round,pad=0.35", "facecolor": LIGHT.paper, "edgecolor": LIGHT.ink},
        arrowprops={"arrowstyle": "-", "color": LIGHT.ink, "shrinkB": 7},
    )
