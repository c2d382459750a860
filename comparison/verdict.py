"""What the numbers of a study say, in sentences; nothing here that the table does not show."""

from collections.abc import Iterator

from comparison.analysis import RecipeResult, StudyResult
from comparison.trial_result import TrialResult
from monitoring.style import lr_text

CLEAR_NATS = 0.1


def sentences(result: StudyResult) -> list[str]:
    """The verdict, most important first."""
    return [*_completeness(result), *_collapse(result), *_losses(result), *_sensitivity(result), *_caution(result)]


def headline(result: StudyResult, lr: float) -> str:
    """One line over the picture of one learning rate: who collapsed when, and who did not."""
    at = [trial for trial in result.trials if trial.lr == lr and trial.step_S.size]
    collapsed = list(dict.fromkeys(trial.recipe for trial in at if trial.collapsed))
    steady = list(dict.fromkeys(trial.recipe for trial in at if trial.recipe not in collapsed))
    if not collapsed:
        return f"At learning rate {lr_text(lr)} no recipe's attention collapses"
    when = steps_of([trial for trial in at if trial.collapsed])
    text = f"At learning rate {lr_text(lr)} the attention of {_listed(collapsed)} collapses at {when}"
    return f"{text}; {_listed(steady)} {'holds' if len(steady) == 1 else 'hold'}" if steady else text


def steps_of(trials: list[TrialResult]) -> str:
    """When these trials collapsed: `step 65`, or `steps 65 to 80`."""
    steps = sorted(trial.collapse_step for trial in trials if trial.collapse_step is not None)
    return f"step {steps[0]}" if steps[0] == steps[-1] else f"steps {steps[0]} to {steps[-1]}"


def _completeness(result: StudyResult) -> Iterator[str]:
    if result.missing:
        failed = sum(trial.failure is not None for trial in result.missing)
        and_failed = f", {failed} of them because they failed" if failed else ""
        yield f"Not complete: {len(result.missing)} of {len(result.trials)} trials have no result yet{and_failed}."


def _collapse(result: StudyResult) -> Iterator[str]:
    steady = []
    for recipe in result.recipes.values():
        if recipe.collapsed:
            yield f"{recipe.recipe}: attention collapsed at {_cases(recipe.collapsed, result)}."
        else:
            steady.append(recipe)
        if recipe.diverged:
            rates = _listed(lr_text(lr) for lr in sorted({trial.lr for trial in recipe.diverged}))
            yield f"{recipe.recipe}: diverged at learning rate {rates}."
    if steady:
        names = _listed(recipe.recipe for recipe in steady)
        rates = f"{lr_text(result.record.learning_rates[0])} to {lr_text(result.record.learning_rates[-1])}"
        yield f"{names}: no collapse anywhere from {rates}."


def _losses(result: StudyResult) -> Iterator[str]:
    recipes = sorted(result.recipes.values(), key=lambda recipe: recipe.best_loss.mean)
    if not recipes:
        return
    best, others = recipes[0], recipes[1:]
    bests = [f"{recipe.recipe} {recipe.best_loss:.3f} at {lr_text(recipe.best_lr)}" for recipe in recipes]
    yield f"Best loss: {'; '.join(bests)}."
    behind = (
        [
            f"at {lr_text(lr)} {leader.recipe} is {gap:.2f} ahead"
            for lr in result.record.learning_rates
            for gap, leader in [max(((_gap(best, other, lr), other) for other in others), key=lambda pair: pair[0])]
            if gap > CLEAR_NATS
        ]
        if others
        else []
    )
    if behind:
        yield f"{best.recipe} is not the best everywhere: {_listed(behind)}."


def _sensitivity(result: StudyResult) -> Iterator[str]:
    if any(len(recipe.losses) < len(result.record.learning_rates) for recipe in result.recipes.values()):
        yield "LR sensitivity cannot be compared yet: some recipes lack learning rates."
    elif len(result.recipes) > 1 and len(result.record.learning_rates) > 1:
        recipes = sorted(result.recipes.values(), key=lambda recipe: recipe.lr_sensitivity.mean)
        values = ", ".join(f"{recipe.recipe} {recipe.lr_sensitivity:.3f}" for recipe in recipes)
        yield f"LR sensitivity over this grid (lower is steadier): {values}."


def _caution(result: StudyResult) -> Iterator[str]:
    if result.single_seed:
        yield "One seed: small differences of loss may be chance; a study with more seeds also gives their spread."


def _cases(trials: list[TrialResult], result: StudyResult) -> str:
    parts = []
    for lr in sorted({trial.lr for trial in trials}):
        here = [trial for trial in trials if trial.lr == lr]
        seeds = "" if result.single_seed else f", {len(here)} of {len(result.of(here[0].recipe, lr))} seeds"
        parts.append(f"{lr_text(lr)} ({steps_of(here)}{seeds})")
    return _listed(parts)


def _gap(best: RecipeResult, other: RecipeResult, lr: float) -> float:
    """How far `best` is behind at one learning rate; negative where it is ahead or either has not run."""
    if lr not in best.losses or lr not in other.losses:
        return -1.0
    return best.losses[lr].mean - other.losses[lr].mean


def _listed(items: Iterator[str] | list[str]) -> str:
    *first, last = list(items)
    return f"{', '.join(first)} and {last}" if first else last
