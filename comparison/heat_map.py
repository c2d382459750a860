"""The picture for many recipes: recipe x learning rate, the loss in each cell, and what befell its trials."""

import math

import numpy as np
from matplotlib import colormaps
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from comparison.analysis import StudyResult
from comparison.palette import in_order
from comparison.trial_result import TrialResult
from monitoring.style import Theme, lr_text

COLLAPSED, RANK_COLLAPSED, BLEW_UP = "✕", "≡", "↑"
LEGEND = f"{COLLAPSED} entropy collapse   {RANK_COLLAPSED} rank collapse   {BLEW_UP} diverged or above its initial loss"
SHADES = "cividis_r"
GREATEST_EXCESS = 1.5  # nats above the study's best from which all cells look alike


def heat_map(part: StudyResult, theme: Theme) -> Figure:
    """Darker is worse; a box marks each recipe's best learning rate; best recipe on top where they are many."""
    recipes, grid = in_order(part), part.record.learning_rates
    loss_RK = np.array(
        [[recipe.losses[lr].mean if lr in recipe.losses else math.nan for lr in grid] for recipe in recipes]
    )
    best = part.leader.best_loss.mean
    finite = loss_RK[np.isfinite(loss_RK)]
    excess = float(finite.max() - best) if finite.size else 1.0
    norm = PowerNorm(0.5, 0, min(GREATEST_EXCESS, max(excess, 1e-3)), clip=True)
    figure = Figure(figsize=(2.6 + 1.05 * len(grid), 1.3 + 0.36 * len(recipes)))
    axes = figure.subplots()
    shades = colormaps[SHADES]
    for row, recipe in enumerate(recipes):
        for column, lr in enumerate(grid):
            value = loss_RK[row, column]
            if math.isnan(value):
                axes.text(column, row, "not run", ha="center", va="center", fontsize=8, color=theme.muted)
                continue
            colour = shades(norm(min(value - best, 1e9)))
            axes.add_patch(Rectangle((column - 0.48, row - 0.46), 0.96, 0.92, facecolor=colour, linewidth=0))
            ink = "#ffffff" if np.dot(colour[:3], (0.299, 0.587, 0.114)) < 0.5 else "#1c2128"
            text = f"{'≤' if recipe.losses[lr].bound else ''}{value:.3f} {marks(part.of(recipe.recipe, lr))}".strip()
            weight = "bold" if lr == recipe.best_lr else "normal"
            axes.text(column, row, text, ha="center", va="center", fontsize=9, color=ink, fontweight=weight)
            if lr == recipe.best_lr:
                box = Rectangle(
                    (column - 0.48, row - 0.46), 0.96, 0.92, fill=False, linewidth=2.2, edgecolor=theme.lines[0]
                )
                axes.add_patch(box)
    names = [f"{recipe.recipe} (baseline)" if recipe is part.baseline else recipe.recipe for recipe in recipes]
    axes.set_yticks(range(len(recipes)), names)
    axes.tick_params(axis="y", labelcolor=theme.ink, labelsize=10)
    axes.set_xticks(range(len(grid)), [lr_text(lr) for lr in grid])
    axes.xaxis.tick_top()
    axes.set_xlim(-0.55, len(grid) - 0.45)
    axes.set_ylim(len(recipes) - 0.45, -0.55)
    axes.grid(False)
    axes.spines[:].set_visible(False)
    legend = LEGEND if len(grid) > 3 else LEGEND.replace("   ", "\n")  # a narrow picture would cut it off
    axes.set_xlabel(f"{legend}\nbox: best learning rate; darker: higher loss", loc="left")
    return figure


def marks(trials: list[TrialResult]) -> str:
    """What befell any of these trials."""
    found = {
        COLLAPSED: any(trial.collapsed for trial in trials),
        RANK_COLLAPSED: any(trial.rank_collapsed for trial in trials),
        BLEW_UP: any(trial.blew_up for trial in trials),
    }
    return "".join(sign for sign, is_so in found.items() if is_so)
