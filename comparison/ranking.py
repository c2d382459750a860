"""Which recipes of a study are told apart: every paired comparison that the report's words rest on.

How many comparisons are corrected for
- *Against the baseline* (the first recipe): best loss and LR sensitivity of every other recipe, as one family.
- *Against the leader* (lowest mean loss): who leads is seen only in the data, so the correction is for all pairs of
  recipes that it was picked from. These differences are shown only where the first family shows one.
So a study of recipes that do not differ shows any difference in at most 5 % of cases. (Each family by itself at 5 %, the
second corrected for its own comparisons only, did so in 8.6 % of simulated studies of 8 recipes and 3 seeds.)
"""

from dataclasses import dataclass, replace
from functools import cached_property
from itertools import combinations

from comparison.analysis import RecipeResult, StudyResult
from comparison.statistics import Difference, holm, paired


@dataclass(frozen=True)
class Ranking:
    """The comparisons of one study (or of its part of one shape); all empty where there are fewer than two seeds."""

    losses: dict[str, Difference]
    """Recipe to its best loss minus the baseline's."""
    sensitivities: dict[str, Difference]
    """Recipe to its LR sensitivity minus the baseline's; empty while a recipe lacks learning rates."""
    behind: dict[str, Difference]
    """Recipe to its best loss minus the leader's."""
    leader: str

    @property
    def any_shown(self) -> bool:
        families = (self.losses, self.sensitivities, self.behind)
        return any(difference.shown for family in families for difference in family.values())

    @cached_property
    def winner(self) -> str | None:
        """The recipe that is shown to be ahead of every other one, if there is one."""
        return self.leader if self.behind and all(difference.shown for difference in self.behind.values()) else None

    @property
    def not_told_apart(self) -> list[str]:
        """The recipes that are not shown to be behind the leader."""
        return [name for name, difference in self.behind.items() if not difference.shown]


def rank(part: StudyResult) -> Ranking:
    """All comparisons of a study of which at least one trial has ended."""
    recipes, baseline, leader = part.recipes, part.baseline, part.leader
    others = [recipe for recipe in recipes.values() if baseline is not None and recipe is not baseline]
    losses = [found for recipe in others if baseline and (found := compare_losses(recipe, baseline))]
    whole = part.complete_rows and len(part.record.learning_rates) > 1
    steady = [found for recipe in others if baseline and whole and (found := compare_sensitivity(recipe, baseline))]
    corrected = holm([*losses, *steady])
    pairs = holm([found for pair in combinations(recipes.values(), 2) if (found := compare_losses(*pair))])
    with_leader = [_from(leader.recipe, pair) for pair in pairs if leader.recipe in (pair.first, pair.second)]
    behind = {pair.first: pair for pair in with_leader}
    if not any(difference.shown for difference in corrected):
        behind = {name: replace(difference, p=1.0) for name, difference in behind.items()}
    return Ranking(
        losses={found.first: found for found in corrected[: len(losses)]},
        sensitivities={found.first: found for found in corrected[len(losses) :]},
        behind={name: behind[name] for name in recipes if name in behind},
        leader=leader.recipe,
    )


def compare_losses(first: RecipeResult, second: RecipeResult) -> Difference | None:
    """Best loss of the first minus that of the second, over the seeds that both have; None for fewer than two."""
    return _difference(first, second, first.best_lr, second.best_lr)


def compare_at(first: RecipeResult, second: RecipeResult, lr: float) -> Difference | None:
    """The same at one learning rate."""
    return _difference(first, second, lr, lr)


def compare_sensitivity(first: RecipeResult, second: RecipeResult) -> Difference | None:
    """LR sensitivity of the first minus that of the second, over the seeds of which both have the whole row."""
    seeds = sorted(first.sensitivity_by_seed.keys() & second.sensitivity_by_seed.keys())
    return paired(
        first.recipe,
        second.recipe,
        [first.sensitivity_by_seed[seed] for seed in seeds],
        [second.sensitivity_by_seed[seed] for seed in seeds],
        bound=first.lr_sensitivity.bound or second.lr_sensitivity.bound,
    )


def _difference(first: RecipeResult, second: RecipeResult, lr: float, second_lr: float) -> Difference | None:
    seeds = sorted(first.by_seed.keys() & second.by_seed.keys())
    bound = first.bound_at(lr) or second.bound_at(second_lr)
    return paired(first.recipe, second.recipe, first.at(lr, seeds), second.at(second_lr, seeds), bound=bound)


def _from(leader: str, pair: Difference) -> Difference:
    """The pair as the other recipe minus the leader."""
    if pair.second == leader:
        return pair
    return replace(pair, first=pair.second, second=pair.first, mean=-pair.mean, low=-pair.high, high=-pair.low)
