"""The figure: validation loss, entropy of attention and sharpness over epochs, a row for each comparison."""

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from examples.samformer.trial import Trial
from examples.seeds import mean_interval
from monitoring.style import Theme, end_labels

Results = Mapping[str, Mapping[str, Sequence[Trial]]]
"""Comparison -> method -> trials, one for each seed."""


def epochs_figure(results: Results, best: float, theme: Theme) -> Figure:
    """Means over seeds with 95 % intervals; `best` is the loss that no forecast beats."""
    figure = Figure(figsize=(13.2, 3.9 * len(results)))
    grid = figure.subplots(len(results), 3, squeeze=False)
    for row, (title, methods) in zip(grid, results.items(), strict=True):
        loss, entropy, sharpness = row
        for axes, text in zip(row, ("Validation loss", "Entropy of attention, nats", "Sharpness"), strict=True):
            axes.set(title=text, xlabel="epoch")
        sharpness.set_title("Sharpness: largest eigenvalue of the Hessian")
        loss.set_ylabel(title)
        ends = []
        for colour, (name, trials) in zip(theme.lines, methods.items(), strict=False):
            _band(loss, trials, [trial.val for trial in trials], colour)
            _band(entropy, trials, [trial.entropy for trial in trials], colour)
            last = _band(sharpness, trials, [trial.sharpness for trial in trials], colour)
            ends.append((name, trials[0].epochs[-1], last, colour))
        loss.axhline(best, color=theme.muted, linewidth=1, linestyle="--")
        loss.set_ylim(best - 0.1, best + 1.2)
        sharpness.set_yscale("symlog", linthresh=10)  # a saddle's is far below zero
        end_labels(sharpness, ends, gap=0.1)
    return figure


def _band(axes: Axes, trials: Sequence[Trial], values: Sequence[Sequence[float]], colour: str) -> float:
    """Draw it; returns where the line ends."""
    interval = mean_interval(values)
    epochs = np.array(trials[0].epochs)
    axes.plot(epochs, interval.mean, color=colour)
    axes.fill_between(epochs, interval.low, interval.high, color=colour, alpha=0.2, linewidth=0)
    return float(interval.mean[-1])
