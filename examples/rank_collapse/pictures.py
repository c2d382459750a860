"""The figures: cosine over depth beside its theory, over depth in the decoder, and over the steps of a training."""

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from examples.rank_collapse.collapse import Trained
from examples.rank_collapse.theory import expected_cosines
from examples.seeds import Interval
from monitoring.style import Theme, end_labels

Depths = Mapping[tuple[str, int], Interval]
"""(scaling, layers) -> cosines after each layer."""


def theory_figure(measured: Depths, alphas: Mapping[tuple[str, int], float], theme: Theme) -> Figure:
    """A panel for each scaling: measured means with their intervals as points and bars, the recursion as lines."""
    figure = Figure(figsize=(11, 4.4))
    scalings = list(dict.fromkeys(scaling for scaling, _ in measured))
    for axes, scaling in zip(figure.subplots(1, len(scalings)), scalings, strict=True):
        ends = []
        for colour, (key, interval) in zip(theme.lines, _only(measured, scaling), strict=False):
            layers = key[1]
            expected = expected_cosines(alphas[key], layers)
            depth = np.arange(1, layers + 1)
            axes.plot(depth, expected, color=colour, linewidth=1.5)
            some = np.unique(np.geomspace(1, layers, 9).astype(int)) - 1
            bars = np.stack([interval.mean - interval.low, interval.high - interval.mean])
            axes.errorbar(depth[some], interval.mean[some], bars[:, some], fmt="o", color=colour, markersize=4)
            ends.append((f"L = {layers}", layers, float(expected[-1]), colour))
        axes.set_xscale("log", base=2)
        axes.xaxis.set_major_formatter(lambda x, _: f"{x:g}")
        axes.set(title=f"Branches scaled by {scaling}", xlabel="layer", ylabel="mean cosine of two tokens")
        end_labels(axes, ends)
    figure.suptitle(
        "Uniform attention, linear feed-forward: measured (points, 95 %) and expected (lines)", x=0.01, ha="left"
    )
    return figure


def depth_figure(cosines: Mapping[tuple[str, str], Interval], theme: Theme) -> Figure:
    """A panel for each residual scaling, a line with its interval for each placement of the norm."""
    figure = Figure(figsize=(11, 4.4))
    scalings = list(dict.fromkeys(scaling for _, scaling in cosines))
    for axes, scaling in zip(figure.subplots(1, len(scalings), sharey=True), scalings, strict=True):
        ends = []
        chosen = [(norm, interval) for (norm, s), interval in cosines.items() if s == scaling]
        for colour, (norm, interval) in zip(theme.lines, chosen, strict=False):
            depth = np.arange(1, len(interval.mean) + 1)
            axes.plot(depth, interval.mean, color=colour)
            axes.fill_between(depth, interval.low, interval.high, color=colour, alpha=0.2, linewidth=0)
            ends.append((norm, depth[-1], float(interval.mean[-1]), colour))
        axes.set(title=f"Residual branches: {scaling}", xlabel="layer", ylim=(-0.02, 1.04))
        end_labels(axes, ends)
    figure.axes[0].set_ylabel("mean cosine of two tokens")
    figure.suptitle("The decoder at initialisation", x=0.01, ha="left")
    return figure


def training_figure(runs: Sequence[Trained], theme: Theme) -> Figure:
    """Three panels over steps: the least cosine of the layers; entropy and dW_Q / dW_V of the last one."""
    figure = Figure(figsize=(13.6, 4.4))
    cosine, entropy, ratio = figure.subplots(1, 3)
    for axes, title in (
        (cosine, "Token cosine (least of the layers)"),
        (entropy, "Attention entropy / maximum (last layer)"),
        (ratio, "‖dW_Q‖ / ‖dW_V‖ (last layer)"),
    ):
        axes.set(title=title, xlabel="step")
        axes.xaxis.set_major_locator(MaxNLocator(4, integer=True))
    for colour, run in zip(theme.lines, runs, strict=False):
        _line(cosine, run, run.cosine_SL.min(1), colour)
        _line(entropy, run, run.entropy_SL[:, -1], colour)
        _line(ratio, run, run.gradient_ratio_SL[:, -1], colour)
    ratio.set_yscale("log")
    for axes in (cosine, entropy):
        axes.set_ylim(-0.02, 1.04)
    end_labels(
        ratio,
        [
            (run.name, int(run.steps_S[-1]), float(run.gradient_ratio_SL[-1, -1]), colour)
            for colour, run in zip(theme.lines, runs, strict=False)
        ],
    )
    figure.suptitle(
        "Training at a learning rate of 3e-2: tokens collapse while attention entropy is at its maximum",
        x=0.006,
        ha="left",
    )
    return figure


def _line(axes: Axes, run: Trained, values_S: np.ndarray, colour: str) -> None:
    axes.plot(run.steps_S, values_S, color=colour)


def _only(measured: Depths, scaling: str) -> list[tuple[tuple[str, int], Interval]]:
    return [(key, interval) for key, interval in measured.items() if key[0] == scaling]
