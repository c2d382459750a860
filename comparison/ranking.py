"""Which recipes of a study are told apart: every paired comparison that the report's words rest on.

How many comparisons are corrected for
- *Against the baseline* (the first recipe): best loss and LR sensitivity of every other recipe, as one family.
- *Against the leader* (lowest mean loss): best loss of every recipe but the baseline, each counted twice, because who
  leads is seen only in the data. These differences are shown only where the first family shows one.
So a study of recipes that do not differ shows any difference in at most 5 % of cases. How often the second family by
itself errs, in 3,000 simulated studies each of 4 to 25 equal recipes with 3, 5 or 8 seeds: 1.5 to 5.9 % (counted once:
3.7 to 11.8 %).
"""

from dataclasses import dataclass, replace
from functools import cached_property

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
    recipes: int

    @property
    def any_shown(self) -> bool:
        families = (self.losses, self.sensitivities, self.behind)
        return any(difference.shown for family in families for difference in family.values())

    @cached_property
    def winner(self) -> str | None:
        """The recipe that is shown to be ahead of every other one, if there is one."""
        told_apart = [name for name, difference in self.behind.items() if difference.shown]
        return self.leader if 0 < len(told_apart) == self.recipes - 1 else None

    @property
    def not_told_apart(self) -> list[str]:
        """The recipes that are not shown to be behind the leader."""
        return [name for name, difference in self.behind.items() if not difference.shown]


def rank(part: StudyResult) -> Ranking:
    """All comparisons of a study of which at least one trial has ended."""
    losses, sensitivities = _against_baseline(part)
    shown = any(found.shown for family in (losses, sensitivities) for found in family.values())
    return Ranking(
        losses, sensitivities, _behind_leader(part, losses, open_=shown), part.leader.recipe, len(part.recipes)
    )


def _against_baseline(part: StudyResult) -> tuple[dict[str, Difference], dict[str, Difference]]:
    """Best loss and LR sensitivity minus the baseline's, corrected together."""
    baseline = part.baseline
    if baseline is None:
        return {}, {}
    others = [recipe for recipe in part.recipes.values() if recipe is not baseline]
    losses = [found for recipe in others if (found := compare_losses(recipe, baseline))]
    whole = part.complete_rows and len(part.record.learning_rates) > 1
    steady = [found for recipe in others if whole and (found := compare_sensitivity(recipe, baseline))]
    corrected = holm([*losses, *steady])
    of_losses, of_steady = corrected[: len(losses)], corrected[len(losses) :]
    return {found.first: found for found in of_losses}, {found.first: found for found in of_steady}


def _behind_leader(part: StudyResult, losses: dict[str, Difference], *, open_: bool) -> dict[str, Difference]:
    """Best loss minus the leader's; the baseline's comparison with the leader is one of `losses`."""
    leader, baseline = part.leader, part.baseline
    if leader is baseline:
        return losses
    rest = [recipe for recipe in part.recipes.values() if recipe is not leader and recipe is not baseline]
    found = holm([found for recipe in rest if (found := compare_losses(recipe, leader))], counted=2)
    behind = {entry.first: entry if open_ else replace(entry, p=1.0) for entry in found}
    if leader.recipe in losses:
        turned = _turned(losses[leader.recipe])
        behind = {turned.first: turned} | behind
    return behind


def compare_losses(first: RecipeResult, second: RecipeResult) -> Difference | None:
    """Best loss of the first minus that of the second, over the seeds that both have; None for fewer than two, and
    where all trials of both blew up."""
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
    if first.lost_at(lr) and second.lost_at(second_lr):
        return None  # both count as their initial losses, which say nothing of training
    seeds = sorted(first.by_seed.keys() & second.by_seed.keys())
    bound = first.bound_at(lr) or second.bound_at(second_lr)
    return paired(first.recipe, second.recipe, first.at(lr, seeds), second.at(second_lr, seeds), bound=bound)


def _turned(found: Difference) -> Difference:
    """The second minus the first."""
    return replace(found, first=found.second, second=found.first, mean=-found.mean, low=-found.high, high=-found.low)
