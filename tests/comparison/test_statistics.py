"""Intervals and paired tests: against scipy's own tests, a book's example of Holm, and how often they err."""

import math

import numpy as np
import pytest
from scipy import stats

from comparison.ranking import rank
from comparison.statistics import SMALLEST_NATS, Difference, Estimate, holm, paired
from tests.comparison.synthetic import Curve, part

EIGHT = {f"recipe-{number}": Curve() for number in range(8)}
FIRST = np.array([2.41, 2.38, 2.44, 2.40])
SECOND = np.array([2.35, 2.36, 2.37, 2.36])


def test_the_difference_is_that_of_the_paired_t_test():
    test = stats.ttest_rel(FIRST, SECOND)
    interval = test.confidence_interval(0.95)
    found = paired("a", "b", FIRST, SECOND)
    assert (found.mean, found.low, found.high) == pytest.approx((np.mean(FIRST - SECOND), interval.low, interval.high))
    assert found.p == pytest.approx(test.pvalue)
    assert found.count == 4


def test_seeds_that_one_side_lacks_are_left_out():
    found = paired("a", "b", [*FIRST, math.nan, math.inf], [*SECOND, 2.3, 2.3])
    assert found == paired("a", "b", FIRST, SECOND)
    assert paired("a", "b", [2.4, math.nan], [2.3, 2.3]) is None


def test_differences_without_variance():
    assert not paired("a", "b", [2.5, 2.5], [2.5, 2.5]).shown
    assert paired("a", "b", [2.5, 2.5], [2.0, 2.0]).shown


def test_holm_by_hand():
    corrected = holm([Difference("a", "b", 1.0, 0.5, 1.5, p, 3) for p in (0.01, 0.04, 0.03, 0.005)])
    assert [difference.p for difference in corrected] == pytest.approx([0.03, 0.06, 0.06, 0.02])


def test_a_difference_is_shown_only_if_all_three_conditions_hold():
    sure = Difference("a", "b", -0.1, -0.11, -0.09, 0.001, 3)
    assert sure.shown
    assert not Difference("a", "b", -0.1, -0.11, -0.09, 0.06, 3).shown
    assert not Difference("a", "b", -0.1, -0.21, 0.01, 0.001, 3).shown
    assert not Difference("a", "b", -SMALLEST_NATS / 2, -0.003, -0.002, 0.001, 3).shown
    assert not Difference("a", "b", -0.1, -0.11, -0.09, 0.001, 3, bound=True).shown


def test_the_bootstrap_interval_of_a_mean():
    low, high = Estimate.of(FIRST).interval
    assert min(FIRST) <= low < np.mean(FIRST) < high <= max(FIRST)
    assert Estimate.of(FIRST).interval == (low, high)  # seeded
    assert Estimate.of([2.4]).interval is None
    assert Estimate.of([2.4, 2.4, 2.4]).interval == (pytest.approx(2.4), pytest.approx(2.4))


def test_how_an_estimate_is_written():
    low, high = Estimate.of([2.0, 3.0]).interval
    assert f"{Estimate.of([2.0, 3.0]):.2f}" == f"2.50 [{low:.2f}, {high:.2f}]"
    assert f"{Estimate.of([2.0]):.2f}" == "2.00"
    assert f"{Estimate.of([2.0], bound=True):.2f}" == "≤ 2.00"
    assert f"{Estimate.of([math.nan]):.2f}" == "-"


@pytest.mark.parametrize("seeds", [3, 5])
def test_identical_recipes_show_no_difference_in_95_of_100_studies(seeds):
    """6 learning rates, 8 recipes. Over 500 draws: 483 at 3 seeds, 486 at 5."""
    quiet = sum(not rank(part(EIGHT, seeds=seeds, draw=draw)).any_shown for draw in range(100))
    assert quiet >= 95


@pytest.mark.parametrize(("seeds", "gap", "least"), [(3, 0.4, 45), (5, 0.1, 45)])
def test_a_planted_winner_is_found(seeds, gap, least):
    """A winner that is 0.4 nats ahead with 3 seeds, or 0.1 with 5, at a noise of 0.01 per trial, in 50 studies."""
    recipes = EIGHT | {"recipe-3": Curve(best=2.3 - gap)}
    rankings = [rank(part(recipes, seeds=seeds, noise=0.01, draw=draw)) for draw in range(50)]
    winners = [ranking.winner for ranking in rankings]
    assert winners.count("recipe-3") >= least
    assert set(winners) <= {"recipe-3", None}
    assert all(ranking.losses["recipe-3"].shown for ranking in rankings)


def test_a_planted_insensitive_recipe_is_found():
    recipes = EIGHT | {"recipe-3": Curve(steepness=0.02)}
    ranking = rank(part(recipes, seeds=5, noise=0.01))
    assert [name for name, found in ranking.sensitivities.items() if found.shown] == ["recipe-3"]
    assert ranking.sensitivities["recipe-3"].mean < 0


def test_one_seed_has_no_winner():
    ranking = rank(part(EIGHT | {"recipe-3": Curve(best=1.0)}, seeds=1))
    assert (ranking.leader, ranking.winner, ranking.any_shown) == ("recipe-3", None, False)
