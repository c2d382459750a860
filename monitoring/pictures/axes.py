"""Axes that the pictures share."""

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter, StrMethodFormatter

from monitoring.history import Steps


def headline(figure: Figure, text: str) -> None:
    """What there is to see, over everything else."""
    figure.suptitle(text, x=0.01, ha="left", fontsize=13, fontweight="bold")


def step_axis(axes: Axes, step_S: Steps) -> None:
    """The horizontal axis from the first to the last step."""
    axes.set_xlim(step_S[0], max(step_S[-1], step_S[0] + 1))
    axes.xaxis.set_major_locator(MaxNLocator(8, integer=True))
    axes.xaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
    axes.set_xlabel("step")


def log_axis(axes: Axes) -> None:
    """A logarithmic vertical axis with plain numbers."""
    axes.set_yscale("log")
    low, high = axes.get_ylim()
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if high < 500 * low else (1,)))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}" if value >= 1 else f"{value:g}"))
    axes.yaxis.set_minor_formatter(NullFormatter())
