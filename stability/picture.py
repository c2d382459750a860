"""The picture of a record: loss, gradient norm and what moved first, on one axis of steps."""

from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from monitoring.style import LIGHT, MARKERS, Theme
from stability.culprit import Examination, Finding
from stability.record import Record
from stability.series import THRESHOLD, movements, series_of

SHOWN = 5
LARGEST = 1e4  # of the deviations drawn: the axis ends there, and infinite ones lie on it


def draw(record: Record, seen: Examination, path: Path, theme: Theme = LIGHT) -> None:
    """Write the picture as PNG. Raises: OSError."""
    with matplotlib.rc_context(theme.rc):
        movers = _movers(seen)
        figure = Figure(figsize=(10, 8 if movers else 5))
        FigureCanvasAgg(figure)
        figure.suptitle(f"{record.header.run}: {record.header.id}", x=0.006, ha="left", fontsize=13, fontweight="bold")
        panels = figure.subplots(3 if movers else 2, 1, sharex=True, height_ratios=[1, 1, 1.6] if movers else [1, 1])
        _line(panels[0], record, "loss", theme.lines[0])
        panels[0].set_title("Loss")
        _line(panels[1], record, "grad_norm", theme.lines[2])
        panels[1].set_title("Gradient norm, before clipping")
        if movers:
            _draw_movers(panels[2], record, movers, theme)
        for axes in panels:
            axes.axvline(record.alarm.step, color=theme.muted, linewidth=1, linestyle=":")
        panels[-1].set_xlabel("step")
        panels[-1].xaxis.set_major_locator(MaxNLocator(integer=True))
        figure.savefig(path, dpi=110)


def _movers(seen: Examination) -> list[Finding]:
    """What is drawn besides loss and norm; a head that never got a gradient has no course to draw."""
    return [f for f in seen.findings if f.z != 0 and f.series not in ("loss", "grad_norm")][:SHOWN]


def _line(axes: Axes, record: Record, name: str, colour: str) -> None:
    """One number per step; steps at which it is not finite are crosses at the top."""
    track = record.tracks.get(name)
    if track is None:
        return
    values = np.asarray(track.values, dtype=float)
    good = np.isfinite(values)
    axes.plot(track.steps, np.where(good, values, np.nan), color=colour, marker="o", markersize=2.5, linewidth=1.4)
    if good.any() and values[good].min() > 0 and values[good].max() > 20 * np.median(values[good]):
        axes.set_yscale("log")
    crosses = track.steps[~good]
    axes.plot(crosses, np.full(len(crosses), 0.95), "x", color=colour, transform=axes.get_xaxis_transform())


def _draw_movers(axes: Axes, record: Record, findings: list[Finding], theme: Theme) -> None:
    """Each series' deviations from its own past; several quantities share one axis so."""
    axes.set_title("What moved first: robust standard deviations from where the steps before led")
    axes.set_yscale("symlog", linthresh=THRESHOLD)
    axes.axhspan(-THRESHOLD, THRESHOLD, color=theme.grid, alpha=0.4, linewidth=0)
    by_name = {series.name: series for series in series_of(record)}
    for number, finding in enumerate(findings):
        series, (peer, place) = by_name[finding.series], finding.index
        z_S = movements(series, int(series.steps[-1])).z_SKN[:, peer, place].clip(-LARGEST, LARGEST)
        colour, marker = theme.lines[number % len(theme.lines)], MARKERS[number % len(MARKERS)]
        axes.plot(series.steps, z_S, color=colour, marker=marker, markersize=3, linewidth=1.2, label=_label(finding))
    axes.legend(loc="upper left", frameon=False, fontsize=8)


def _label(finding: Finding) -> str:
    where = finding.where
    place = str(where.get("matrix") or f"layer {where['layer']}" if where else "")
    head = f" head {where['head']}" if "head" in where else ""
    rank = "".join(f" {key} {where[key]}" for key in ("rank", "tp") if key in where)
    return f"{place}{head}{rank} {finding.quantity}".strip()
