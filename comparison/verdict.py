"""What the numbers of a study say, in sentences: nothing that the table does not show, and no more than its intervals.

What counts as shown is said in `comparison.statistics` and `comparison.ranking`.
"""

from collections.abc import Callable, Iterator, Mapping
from functools import partial

from comparison import scaling
from comparison.analysis import PLATEAU_NATS, Analysis, RecipeResult, StudyResult
from comparison.ranking import Ranking, compare_at, rank
from comparison.statistics import Difference, Estimate
from comparison.trial_result import TrialResult
from comparison.wording import MANY, collapse_steps, listed, percent, rates, seeds_of, some, span, steps_of
from monitoring.style import lr_text

CLEAR_NATS = 0.1
"""A gap at a single learning rate is named from here: there are many of them, and their intervals are not corrected."""
SLOWER = 0.98


def sentences(analysis: Analysis) -> list[str]:
    """The verdict, most important first; in a study with shapes, shape by shape."""
    found = list(_completeness(analysis))
    for shape, part in analysis.with_results.items():
        prefix = f"{shape}: " if shape else ""
        found += [prefix + sentence for sentence in of_part(part)]
    return [*found, *scaling.sentences(analysis), *_stopped(analysis), *_caution(analysis)]


def of_part(part: StudyResult) -> list[str]:
    """The verdict on one shape."""
    ranking = rank(part)
    return [
        *(_seen(part) if part.single_seed else _best(part, ranking)),
        *_against_baseline(part, ranking),
        *_collapse(part),
        *_rank_collapse(part),
        *_blew_up(part),
        *_where_it_loses(part),
        *_sensitivity(part, ranking),
        *_plateau(part),
        *_cost(part),
    ]


def headline(part: StudyResult, lr: float) -> str:
    """One line over the picture of one learning rate: whose attention collapsed when, and whose did not."""
    at = [trial for trial in part.trials if trial.lr == lr and trial.step_S.size]
    collapsed = list(dict.fromkeys(trial.recipe for trial in at if trial.collapsed))
    steady = list(dict.fromkeys(trial.recipe for trial in at if trial.recipe not in collapsed))
    if not collapsed:
        return f"At learning rate {lr_text(lr)} no recipe's attention collapses"
    when = collapse_steps(trial for trial in at if trial.collapsed)
    if len(collapsed) + len(steady) > MANY:
        of = f"{len(collapsed)} of {len(collapsed) + len(steady)} recipes"
        return f"At learning rate {lr_text(lr)} the attention of {of} collapses at {when}"
    text = f"At learning rate {lr_text(lr)} the attention of {listed(collapsed)} collapses at {when}"
    return f"{text}; {listed(steady)} {'holds' if len(steady) == 1 else 'hold'}" if steady else text


def _completeness(analysis: Analysis) -> Iterator[str]:
    missing = analysis.missing
    if missing:
        failed = sum(trial.failure is not None for trial in missing)
        and_failed = f", {failed} of them because they failed" if failed else ""
        yield f"Not complete: {len(missing)} of {len(analysis.trials)} trials have no result yet{and_failed}."


def _seen(part: StudyResult) -> Iterator[str]:
    """The losses of a single seed."""
    recipes = sorted(part.recipes.values(), key=lambda recipe: recipe.best_loss.mean)
    values = "; ".join(f"{recipe.recipe} {recipe.best_loss:.3f} at {lr_text(recipe.best_lr)}" for recipe in recipes)
    yield f"Lowest loss seen, with one seed: {values}. Without intervals no winner is declared."


def _best(part: StudyResult, ranking: Ranking) -> Iterator[str]:
    leader = part.leader
    at = f"{leader.best_loss:.3f} at {lr_text(leader.best_lr)}"
    if all(trial.blew_up for recipe in part.recipes.values() for trial in recipe.ended):
        yield "No recipe is best: every trial that has ended diverged, or ended above its initial loss."
        return
    if not ranking.behind:
        yield f"Lowest loss: {leader.recipe}, {at}; nothing yet to compare it with over two seeds or more."
    elif ranking.winner is not None:
        second = min(ranking.behind.values(), key=lambda difference: difference.mean)
        yield (
            f"{leader.recipe} is the best{' so far' if part.missing else ''}: its lowest loss, {at}, is below that of "
            f"every other recipe; the next, {second.first}, is {_gap(second)} behind."
        )
    elif not any(difference.shown for difference in [*ranking.behind.values(), *ranking.losses.values()]):
        yield f"No difference shown between the lowest losses of the recipes; {leader.recipe}'s mean is lowest, {at}."
    else:
        yield f"No single best is shown: {leader.recipe} has the lowest mean loss, {at}."
        if ranking.not_told_apart:
            yield f"Not told apart from {leader.recipe}: {some(ranking.not_told_apart)}."
        behind = {name: difference for name, difference in ranking.behind.items() if difference.shown}
        if behind:
            yield f"Shown to be behind {leader.recipe}: {_named(behind, '.3f')}."
    uncompared = [name for name in part.recipes if name not in ranking.behind and name != leader.recipe]
    if ranking.behind and uncompared:
        yield f"Not compared with {leader.recipe}, for want of two seeds that both have: {some(uncompared)}."


def _against_baseline(part: StudyResult, ranking: Ranking) -> Iterator[str]:
    if part.baseline is None or not ranking.losses or len(part.recipes) < 3:
        return  # with two recipes the sentence before has said it
    baseline = part.baseline
    if any(difference.shown for difference in ranking.losses.values()):
        at = f"{baseline.best_loss:.3f} at {lr_text(baseline.best_lr)}"
        yield f"Lowest loss against the baseline {baseline.recipe} ({at}): {_sorted_out(ranking.losses)}."


def _sorted_out(differences: Mapping[str, Difference]) -> str:
    """Which recipes are lower, which higher, and of which nothing is shown."""
    lower = {name: found for name, found in differences.items() if found.shown and found.mean < 0}
    higher = {name: found for name, found in differences.items() if found.shown and found.mean > 0}
    neither = [name for name, found in differences.items() if not found.shown]
    groups = [("lower", lower), ("higher", higher)]
    words = [f"{word} with {_named(found, '.3f')}" for word, found in groups if found]
    if neither:
        words.append(f"no difference shown for {some(neither)}")
    return "; ".join(words)


def _collapse(part: StudyResult) -> Iterator[str]:
    collapsed = [recipe for recipe in part.recipes.values() if recipe.collapsed]
    steady = [recipe.recipe for recipe in part.recipes.values() if not recipe.collapsed and _measured(recipe)]
    if collapsed:
        describe = partial(_cases, part=part, short=len(collapsed) > MANY, step=lambda trial: trial.collapse_step)
        yield f"Attention entropy collapsed: {'; '.join(describe(recipe.collapsed) for recipe in collapsed)}."
    unfinished = {trial.recipe for trial in part.missing}
    whole = [name for name in steady if name not in unfinished]
    if whole:
        grid = part.record.learning_rates
        who = "all other recipes" if collapsed and len(whole) == len(steady) > MANY else some(whole)
        yield f"No entropy collapse anywhere from {span(grid[0], grid[-1])}: {who}."
    if len(whole) < len(steady):
        yield f"No entropy collapse so far, in a part of the trials: {some([n for n in steady if n in unfinished])}."


def _rank_collapse(part: StudyResult) -> Iterator[str]:
    fallen = [recipe for recipe in part.recipes.values() if recipe.rank_collapsed]
    if fallen:
        describe = partial(_cases, part=part, short=len(fallen) > MANY, step=lambda trial: trial.rank_collapse_step)
        cases = "; ".join(describe(recipe.rank_collapsed) for recipe in fallen)
        yield f"Rank collapse (all tokens alike; attention uniform): {cases}."


def _cases(
    trials: list[TrialResult], part: StudyResult, *, short: bool, step: Callable[[TrialResult], int | None]
) -> str:
    """Where and when something befell a recipe's trials: `pre-ln at 3e-2 (step 60)`."""
    name, grid, lrs = trials[0].recipe, part.record.learning_rates, sorted({trial.lr for trial in trials})
    upwards = len(lrs) > 1 and lrs == grid[-len(lrs) :]
    if short or upwards:
        steps = [found for trial in trials if (found := step(trial)) is not None]
        where, ended = _where(trials, part)
        return f"{name} at {where} (first at step {min(steps)}; {len(trials)} of {ended} trials)"
    cells = [[trial for trial in trials if trial.lr == lr] for lr in lrs]
    return f"{name} at " + listed(
        f"{lr_text(cell[0].lr)} ({steps_of(step(trial) for trial in cell)}{seeds_of(cell, part)})" for cell in cells
    )


def _where(trials: list[TrialResult], part: StudyResult) -> tuple[str, int]:
    """The learning rates of a recipe's trials, `3e-2 and above` if they are the highest; how many ended at these."""
    grid, lrs = part.record.learning_rates, sorted({trial.lr for trial in trials})
    upwards = len(lrs) > 1 and lrs == grid[-len(lrs) :]
    ended = sum(trial.ended for lr in lrs for trial in part.of(trials[0].recipe, lr))
    return f"{lr_text(lrs[0])} and above" if upwards else rates(lrs), ended


def _blew_up(part: StudyResult) -> Iterator[str]:
    cases = []
    for recipe in part.recipes.values():
        if recipe.blew_up:
            where, ended = _where(recipe.blew_up, part)
            cases.append(f"{recipe.recipe} at {where} ({len(recipe.blew_up)} of {ended} trials)")
    if cases:
        yield f"Diverged, or ended above the initial loss: {'; '.join(cases)}."


def _where_it_loses(part: StudyResult) -> Iterator[str]:
    """Learning rates at which the recipe of the lowest loss is clearly behind another."""
    leader = part.leader
    others = [recipe for recipe in part.recipes.values() if recipe is not leader]
    cases = [case for lr in part.record.learning_rates if (case := _ahead_at(lr, leader, others, part.single_seed))]
    if cases:
        note = "" if part.single_seed else " (each with its own interval, not corrected for their number)"
        yield f"{leader.recipe} is not ahead everywhere: {listed(cases)}{note}."


def _ahead_at(lr: float, leader: RecipeResult, others: list[RecipeResult], single_seed: bool) -> str | None:
    """`at 1e-3 pre-ln is 0.35 [0.31, 0.39] ahead`, if another recipe is clearly ahead of the leader there."""
    there = [recipe for recipe in others if lr in recipe.losses and lr in leader.losses]
    if not there:
        return None
    first = min(there, key=lambda recipe: recipe.losses[lr].mean)
    gap = leader.losses[lr].mean - first.losses[lr].mean
    if not gap > CLEAR_NATS:
        return None
    if single_seed:
        return f"at {lr_text(lr)} {first.recipe} is {gap:.2f} lower"
    found = compare_at(leader, first, lr)
    if found is None or not found.excludes_zero:
        return None
    return f"at {lr_text(lr)} {first.recipe} is {found.mean:.2f} [{found.low:.2f}, {found.high:.2f}] ahead"


def _sensitivity(part: StudyResult, ranking: Ranking) -> Iterator[str]:
    if len(part.recipes) < 2 or len(part.record.learning_rates) < 2:
        return
    if not part.complete_rows:
        yield "LR sensitivity cannot be compared yet: some recipes lack learning rates."
    elif part.single_seed:
        recipes = sorted(part.recipes.values(), key=lambda recipe: recipe.lr_sensitivity.mean)
        values = ", ".join(f"{recipe.recipe} {recipe.lr_sensitivity:.3f}" for recipe in recipes)
        yield f"LR sensitivity over this grid (lower is steadier): {values}."
    elif part.baseline is not None and ranking.sensitivities:
        start = f"LR sensitivity against the baseline {part.baseline.recipe} ({part.baseline.lr_sensitivity:.3f})"
        if any(difference.shown for difference in ranking.sensitivities.values()):
            yield f"{start}, lower being steadier: {_sorted_out(ranking.sensitivities)}."
        else:
            yield f"{start}: no difference shown."


def _plateau(part: StudyResult) -> Iterator[str]:
    if len(part.recipes) < 2 or not part.complete_rows:
        return
    widest = max(part.recipes.values(), key=lambda recipe: recipe.plateau_decades)
    baseline = part.baseline
    if baseline is None or widest.plateau_decades <= baseline.plateau_decades:
        return
    yield (
        f"Widest range of learning rates within {PLATEAU_NATS} nat of its own best: {widest.recipe}, "
        f"{span(*widest.plateau)}; the baseline's is {span(*baseline.plateau)} (read off the grid, not tested)."
    )


def speeds(part: StudyResult) -> dict[str, Estimate]:
    """Recipe to its tokens per second over the baseline's, trial by trial of the same learning rate and seed."""
    if part.baseline is None:
        return {}
    base = {(trial.lr, trial.seed): trial.tokens_per_s for trial in part.baseline.ended}
    found = {
        name: Estimate.of(
            trial.tokens_per_s / base[trial.lr, trial.seed] for trial in recipe.ended if (trial.lr, trial.seed) in base
        )
        for name, recipe in part.recipes.items()
        if recipe is not part.baseline
    }
    return {name: estimate for name, estimate in found.items() if estimate.count}


def _cost(part: StudyResult) -> Iterator[str]:
    slower = {name: ratio.mean for name, ratio in speeds(part).items() if ratio.mean < SLOWER}
    if slower and part.baseline is not None:
        order = sorted(slower, key=lambda name: slower[name])[:MANY]
        cost = listed(f"{name} {percent(slower[name])}" for name in order)
        which = "the slowest are " if len(slower) > MANY else ""
        yield f"Tokens per second against {part.baseline.recipe}: {which}{cost} (trials run at once share the cores)."


def _stopped(analysis: Analysis) -> Iterator[str]:
    stopped = [trial for trial in analysis.trials if trial.ended and trial.summary is None]
    if not stopped:
        return
    bounds = sum(trial.bound for trial in stopped)
    rules = (
        [f"{len(stopped) - bounds} above their initial loss, which counts as their loss"]
        if bounds < len(stopped)
        else []
    )
    if bounds:
        rules.append(f"{bounds} far behind, whose loss (≤) is that at which they were stopped")
    saved, planned = sum(trial.saved_steps for trial in stopped), sum(trial.record.steps for trial in analysis.trials)
    yield f"Stopped early: {len(stopped)} trials ({listed(rules)}); {saved:,} of {planned:,} steps were not run."


def _caution(analysis: Analysis) -> Iterator[str]:
    seeds = len(analysis.record.seeds)
    if seeds == 1:
        yield "One seed: small differences of loss may be chance; a study with more seeds also gives intervals."
    elif seeds <= MANY:
        yield f"{seeds} seeds show only differences that are large beside the scatter: not shown does not mean equal."


def _measured(recipe: RecipeResult) -> bool:
    return any(trial.step_S.size for trial in recipe.ended)


def _named(differences: Mapping[str, Difference], spec: str) -> str:
    """Recipes with their differences, the largest first; only the first ones where there are many."""
    order = sorted(differences, key=lambda name: -abs(differences[name].mean))
    many = len(order) > MANY
    named = listed(f"{name} ({differences[name]:{spec}})" for name in order[: 2 if many else MANY])
    return f"{len(order)} recipes, most with {named}" if many else named


def _gap(difference: Difference) -> str:
    return f"{difference.mean:.3f} [{difference.low:.3f}, {difference.high:.3f}]"
