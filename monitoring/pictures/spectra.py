"""Spectral norm and gamma of every matrix over steps: a fan of thin lines, its quantiles, and the outermost by name.

Letters: S measured steps, M matrices.
"""

from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure

from configs.stability import DetectorsConfig
from monitoring.curves import thin
from monitoring.history import History, Steps, Values
from monitoring.pictures.axes import log_axis, step_axis
from monitoring.style import LIGHT, end_labels

BANDS = ((0.1, 0.9, 0.16), (0.25, 0.75, 0.26))
"""Quantiles that a band lies between, and its opacity."""


@dataclass(frozen=True)
class Fan:
    """What is drawn of one quantity: a line per matrix that has it."""

    step_S: Steps
    value_SM: Values
    names: list[str]

    @property
    def extremes(self) -> list[int]:
        """The highest and the lowest matrix at the end, the one further from zero first; indices into `names`."""
        last_M = self.value_SM[-1]
        if not np.isfinite(last_M).any():
            return []
        ends = {int(np.nanargmax(last_M)), int(np.nanargmin(last_M))}
        return sorted(ends, key=lambda matrix: -abs(last_M[matrix]))

    @property
    def is_log(self) -> bool:
        """Whether all lie above zero and far apart."""
        finite = self.value_SM[np.isfinite(self.value_SM)]
        return bool(finite.size and finite.min() > 0 and finite.max() > 8 * finite.min())


def fan(history: History, name: str) -> Fan | None:
    """`sigma` or `gamma` of the matrices that have one (plain matrices have no gamma)."""
    step_S, value_SM = history.signal(name)
    if step_S.size < 2 or value_SM.shape[1] != len(history.matrices):
        return None
    having = np.flatnonzero(np.isfinite(value_SM).any(axis=0))
    if not having.size:
        return None
    return Fan(step_S, value_SM[:, having], [history.matrices[matrix] for matrix in having])


def spectral_norms(history: History, detectors: DetectorsConfig) -> Figure | None:
    """A panel for sigma, one for gamma."""
    wanted = {"sigma": "spectral norm of the weight (sigma)", "gamma": "spectral norm in use (gamma)"}
    fans = {name: found for name in wanted if (found := fan(history, name)) is not None}
    if not fans:
        return None
    figure = Figure(figsize=(11.5, 0.7 + 3.6 * len(fans)))
    for axes, (name, shown) in zip(figure.subplots(len(fans), 1, squeeze=False)[:, 0], fans.items(), strict=True):
        _draw(axes, shown)
        axes.set_title(title(name, shown), fontsize=13)
        axes.set_ylabel(wanted[name])
    legend = "thin lines: matrices; bands: the middle half and the middle 80 % of them; black: their median"
    axes.set_xlabel(f"step\n{legend}", loc="left")
    return figure


def title(name: str, shown: Fan) -> str:
    """The outermost matrix, with the median to compare."""
    if not shown.extremes:
        return f"{name} is not a number"
    last_M, outermost = shown.value_SM[-1], shown.extremes[0]
    what = f"|{name}|" if last_M[outermost] < 0 else name
    value, median = abs(last_M[outermost]), np.nanmedian(np.abs(last_M))
    where = f"matrix {shown.names[outermost]} (median {median:.3g})"
    return f"Largest {what} at step {shown.step_S[-1]:,}: {value:.3g}, {where}"


def _draw(axes: Axes, shown: Fan) -> None:
    matrices = shown.value_SM.shape[1]
    lines = [np.column_stack(thin(shown.step_S, shown.value_SM[:, matrix])) for matrix in range(matrices)]
    axes.add_collection(
        LineCollection(lines, colors=LIGHT.lines[2], linewidths=0.6, alpha=0.1 + min(0.4, 10 / matrices), zorder=2)
    )
    stride = -(-shown.step_S.size // 1000)  # quantiles are smooth: every k-th is as good
    steps, values = shown.step_S[::stride], shown.value_SM[::stride]
    for low, high, alpha in BANDS:
        bounds = np.nanquantile(values, [low, high], axis=1)
        axes.fill_between(steps, *bounds, color=LIGHT.lines[5], alpha=alpha, linewidth=0, zorder=1)
    axes.plot(steps, np.nanmedian(values, axis=1), color=LIGHT.ink, linewidth=1.6, zorder=3)
    colours = (LIGHT.lines[0], LIGHT.lines[1])
    for matrix, colour in zip(shown.extremes, colours, strict=False):
        axes.plot(*lines[matrix].T, color=colour, linewidth=2.2, zorder=4)
    axes.autoscale_view()
    if shown.is_log:
        log_axis(axes)
    step_axis(axes, shown.step_S)
    last_M = shown.value_SM[-1]
    ends = zip(shown.extremes, colours, strict=False)
    end_labels(axes, [(shown.names[m], float(shown.step_S[-1]), float(last_M[m]), colour) for m, colour in ends])
