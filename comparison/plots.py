"""The pictures of a study, by file stem: each a function from what was analysed and a theme to a matplotlib `Figure`.

A cross marks collapse of attention entropy everywhere: on a curve over learning rates the trial that collapsed, on a
curve over steps the step at which it did.
"""

from collections.abc import Callable, Iterator

import matplotlib
from matplotlib.figure import Figure

from comparison.analysis import PLATEAU_NATS, Analysis, StudyResult
from comparison.attention_plots import attention_over_steps, collapse_and_cure, entropy_per_head
from comparison.difference_plot import differences_from_baseline
from comparison.heat_map import heat_map
from comparison.loss_plots import loss_over_learning_rate, sensitivity_bars
from comparison.shape_plots import best_rate_over_width, loss_per_shape
from monitoring.style import LIGHT, Theme

OF_A_SHAPE: dict[str, Callable[[StudyResult, Theme], Figure | None]] = {
    "collapse-and-cure": collapse_and_cure,
    "losses": heat_map,
    "loss-vs-learning-rate": loss_over_learning_rate,
    "differences": differences_from_baseline,
    "learning-rate-sensitivity": sensitivity_bars,
    "attention-over-steps": attention_over_steps,
    "entropy-per-head": entropy_per_head,
}
"""The first is the one to show to a stranger."""
OF_ALL_SHAPES: dict[str, Callable[[Analysis, Theme], Figure | None]] = {
    "loss-per-shape": loss_per_shape,
    "best-learning-rate-vs-width": best_rate_over_width,
}
NARROW = ("losses", "learning-rate-sensitivity", "best-learning-rate-vs-width")
CAPTIONS = {
    "collapse-and-cure": (
        "Left: validation loss at the end of training against the learning rate. Middle and right: mean attention "
        "entropy and the largest attention logit during training, at one learning rate. A cross marks collapse."
    ),
    "losses": (
        "Validation loss of every recipe at every learning rate, mean over seeds: darker is worse, a box marks the "
        "recipe's best learning rate, signs say what befell a trial of the cell."
    ),
    "loss-vs-learning-rate": (
        "Validation loss after the last step, with 95 % bootstrap intervals over seeds. Where recipes share a panel, "
        f"the band under a line is its plateau: the learning rates within {PLATEAU_NATS} nat of the recipe's best. A "
        "cross marks a trial whose attention collapsed."
    ),
    "differences": (
        "Lowest loss and LR sensitivity of each recipe minus the baseline's, seed by seed, with the 95 % intervals of "
        "the paired t-test. A filled dot is a difference that is shown after the correction for the number of "
        "comparisons; a hollow one is not. The grey band is smaller than is worth naming. Intervals may reach beyond "
        "the picture."
    ),
    "learning-rate-sensitivity": (
        "Mean distance of the loss from the recipe's best over this study's learning rates, each loss clipped at its "
        "initial value (Wortsman et al. 2023), with 95 % bootstrap intervals over seeds."
    ),
    "attention-over-steps": (
        "Mean attention entropy as a share of the causal maximum, and the largest logit of any head, at every "
        "learning rate. A cross marks the first step at which attention had collapsed."
    ),
    "entropy-per-head": (
        "Entropy of every attention head over training; dark heads look at almost one token only. Left, the collapsed "
        "trial of the highest learning rate; right, the best trial that did not collapse."
    ),
    "loss-per-shape": "Validation loss against the learning rate, a panel for each shape of the model.",
    "best-learning-rate-vs-width": (
        "The best learning rate of each recipe, refined between grid points by a parabola, against the width of the "
        "model. A hollow dot: the best is at an end of the grid and may lie beyond it."
    ),
}


def figures(analysis: Analysis, theme: Theme = LIGHT) -> Iterator[tuple[str, Figure]]:
    """Every picture that the study's data allows: (file stem, figure). In a study with shapes, a stem ends with its
    shape: `losses.d64`."""
    with matplotlib.rc_context(theme.rc):
        for name, of_all in OF_ALL_SHAPES.items():
            figure = of_all(analysis, theme)
            if figure is not None:
                yield name, figure
        for shape, part in analysis.with_results.items():
            for name, of_shape in OF_A_SHAPE.items():
                figure = of_shape(part, theme)
                if figure is not None:
                    yield f"{name}.{shape}" if shape else name, figure
