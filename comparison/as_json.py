"""What `steadytrain compare --json` prints: the numbers behind the table and the verdict, for scripts."""

from pathlib import Path
from typing import Any

from comparison import verdict
from comparison.against import Against, sentences
from comparison.analysis import Analysis, RecipeResult
from comparison.statistics import Difference, Estimate


def study(analysis: Analysis, report: Path) -> dict[str, Any]:
    """A study: each recipe at each shape, and the verdict. Losses in nats; learning rates as text, as keys are."""
    return {
        "study": analysis.record.name,
        "dir": str(analysis.dir),
        "report": str(report),
        "trials": len(analysis.trials),
        "missing": len(analysis.missing),
        "recipes": [
            {"recipe": name, "shape": shape} | _recipe(recipe)
            for shape, part in analysis.with_results.items()
            for name, recipe in part.recipes.items()
        ],
        "verdict": list(verdict.sentences(analysis)),
    }


def two(found: Against, page: Path) -> dict[str, Any]:
    """Two studies: each recipe that both have. Differences are the first's minus the second's."""
    return {
        "study": found.ours.record.name,
        "against": found.theirs.record.name,
        "report": str(page),
        "recipes": [
            {
                "recipe": pair.label,
                "ours": _recipe(pair.ours),
                "theirs": _recipe(pair.theirs),
                "loss": _difference(pair.loss),
                "lr_sensitivity": _difference(pair.sensitivity),
            }
            for pair in found.pairs
        ],
        "verdict": sentences(found),
    }


def _recipe(recipe: RecipeResult) -> dict[str, Any]:
    return {
        "best_lr": recipe.best_lr,
        "best_loss": _estimate(recipe.best_loss),
        "lr_sensitivity": _estimate(recipe.lr_sensitivity),
        "losses": {f"{lr:g}": _estimate(estimate) for lr, estimate in recipe.losses.items()},
        "trials": len(recipe.ended),
        "collapsed": len(recipe.collapsed),
        "blew_up": len(recipe.blew_up),
        "stopped": len(recipe.stopped),
    }


def _estimate(estimate: Estimate) -> dict[str, Any]:
    """`bound`: the mean is an upper bound, since a trial in it was stopped."""
    return {"mean": estimate.mean, "sd": estimate.sd, "seeds": len(estimate.values), "bound": estimate.bound}


def _difference(difference: Difference | None) -> dict[str, Any] | None:
    """None where there are too few seeds for an interval."""
    if difference is None:
        return None
    return {
        "mean": difference.mean,
        "low": difference.low,
        "high": difference.high,
        "p": difference.p,
        "shown": difference.shown,
    }
