"""The verdict claims what the intervals show, and no more."""

import math

import numpy as np
import pytest

from comparison.analysis import analyse
from comparison.metrics import study_metrics
from comparison.scaling import lr_scaling, vertex
from comparison.scaling import sentences as scaling_sentences
from comparison.verdict import of_part, sentences
from tests.comparison.synthetic import Curve, gathered, part, study, trial

THREE = {"pre-ln": Curve(), "qk-norm": Curve(), "sigma": Curve()}


def said(sentences: list[str], start: str) -> str:
    """The one sentence that begins so."""
    (found,) = [sentence for sentence in sentences if sentence.startswith(start)]
    return found


def test_one_seed_says_who_collapsed_and_declares_no_winner(finished_study):
    verdict = sentences(analyse(finished_study.dir))
    assert said(verdict, "Lowest loss seen").endswith("Without intervals no winner is declared.")
    assert "Attention entropy collapsed: pre-ln at 3e-2 (step 60)." in verdict
    assert "No entropy collapse anywhere from 1e-3 to 3e-2: sigma-reparam." in verdict
    assert said(verdict, "One seed")
    assert not [sentence for sentence in verdict if "is the best" in sentence]


def test_verdict_admits_where_the_leader_loses(finished_study):
    analysis = analyse(finished_study.dir)
    recipes = analysis.parts[""].recipes
    behind = recipes["sigma-reparam"].losses[1e-3].mean - recipes["pre-ln"].losses[1e-3].mean
    assert recipes["sigma-reparam"].best_loss.mean < recipes["pre-ln"].best_loss.mean
    expected = f"sigma-reparam is not ahead everywhere: at 1e-3 pre-ln is {behind:.2f} lower."
    assert expected in sentences(analysis)


def test_a_winner_is_named_with_its_lead_and_where_it_loses():
    recipes = THREE | {"sigma": Curve(best=2.0, centre=-0.9, steepness=0.2)}
    verdict = of_part(part(recipes, seeds=5, noise=0.005))
    winner = said(verdict, "sigma is the best")
    assert "the next, " in winner and winner.endswith(" behind.")
    loses = said(verdict, "sigma is not ahead everywhere: at 1e-3 ")
    assert "ahead (each with its own interval, not corrected for their number)." in loses


def test_recipes_that_are_not_told_apart_are_named_together():
    recipes = THREE | {"qk-norm": Curve(best=2.0), "sigma": Curve(best=2.0)}
    verdict = of_part(part(recipes, seeds=5, noise=0.01))
    assert said(verdict, "No single best is shown")
    (other,) = {"qk-norm", "sigma"} - {said(verdict, "No single best is shown").split(": ")[1].split()[0]}
    assert said(verdict, "Not told apart").endswith(f": {other}.")
    assert "pre-ln" in said(verdict, "Shown to be behind")
    assert "lower with" in said(verdict, "Lowest loss against the baseline pre-ln")


@pytest.mark.parametrize("seeds", [2, 3, 5])
def test_equal_recipes_give_no_difference_shown(seeds):
    verdict = of_part(part(THREE, seeds=seeds))
    assert said(verdict, "No difference shown between the lowest losses of the recipes")
    assert said(verdict, "LR sensitivity against the baseline").endswith(": no difference shown.")
    assert not [sentence for sentence in verdict if "best:" in sentence or "behind" in sentence or "ahead" in sentence]


def test_an_incomplete_study_has_a_winner_only_so_far():
    losses = {"a": 2.5, "b": 2.0}
    trials = [trial(name, 1e-2, seed, loss + 0.01 * seed) for name, loss in losses.items() for seed in range(3)]
    trials += [trial("c", 1e-2, seed, 1.0, summary=None) for seed in range(3)]
    verdict = sentences(gathered(["a", "b", "c"], trials, seeds=3, grid=(1e-2,)))
    assert verdict[0] == "Not complete: 3 of 9 trials have no result yet."
    assert verdict[1].startswith("b is the best so far: ")


def test_cost_is_told_against_the_baseline():
    slow = {"status": "finished", "val_loss": 2.3, "initial_loss": 5.6, "tokens_per_s": 15_000.0}
    trials = [trial("a", 1e-2, 0, 2.3), trial("b", 1e-2, 0, 2.3, summary=slow)]
    verdict = sentences(gathered(["a", "b"], trials, seeds=1, grid=(1e-2,)))
    assert "Tokens per second against a: b 75 % (trials run at once share the cores)." in verdict


WIDTHS = {"d64": {"model.hidden_size": 64}, "d128": {"model.hidden_size": 128}, "d256": {"model.hidden_size": 256}}


def widths_study(move: float, **settings):
    """The best learning rate moves by 10^move when the width doubles."""
    curves = {shape: {"a": Curve(centre=-1.6 + move * step)} for step, shape in enumerate(WIDTHS)}
    return study({"a": Curve()}, shapes=WIDTHS, curve_of=curves, **settings)


def test_the_best_learning_rate_against_width():
    (found,) = lr_scaling(widths_study(np.log10(0.5), noise=0.001))
    assert found.exponent == pytest.approx(-1, abs=0.1)
    assert found.interval[0] < -1 < found.interval[1] < 0
    assert found.sentence().startswith("a: the best learning rate divides by 2 [")
    assert found.sentence().endswith("when the width doubles (from 64 to 256).")


def test_the_grid_must_be_able_to_show_it():
    (found,) = lr_scaling(widths_study(-0.8, noise=0.001))
    assert "is at an end of the grid (d256), so its move is not shown." in found.sentence()
    (found,) = lr_scaling(widths_study(0.0, noise=0.02))
    assert found.sentence().startswith("a: no move of the best learning rate with width is shown")
    (found,) = lr_scaling(widths_study(np.log10(0.5), noise=0.001, seeds=1))
    assert found.sentence().endswith("; one seed, so there is no interval.")
    assert lr_scaling(study({"a": Curve()})) == []


def test_moves_of_several_recipes_are_not_corrected_and_say_so():
    curves = {shape: Curve(centre=-1.6 - 0.3 * step) for step, shape in enumerate(WIDTHS)}
    for recipes, expected in ((["a"], 0), (["a", "b"], 1)):
        curve_of = {shape: dict.fromkeys(recipes, curve) for shape, curve in curves.items()}
        shaped = study(dict.fromkeys(recipes, Curve()), shapes=WIDTHS, curve_of=curve_of, noise=0.001)
        assert sum("own interval, not corrected" in sentence for sentence in scaling_sentences(shaped)) == expected


def test_a_best_rate_that_does_not_move_at_all_is_no_move():
    (found,) = lr_scaling(widths_study(0.0, noise=0.0))
    assert (found.exponent, found.shown) == (0, False)


def test_the_vertex_lies_between_grid_points():
    recipe = part({"a": Curve(centre=-1.7)}, noise=0.0).recipes["a"]
    assert np.log10(vertex(recipe, 0)) == pytest.approx(-1.7, abs=1e-6)


def test_metrics_for_mlflow():
    metrics = study_metrics(study(THREE | {"sigma": Curve(best=2.0)}, seeds=5, noise=0.01))
    assert metrics["best_loss_low/sigma"] < metrics["best_loss/sigma"] < metrics["best_loss_high/sigma"]
    assert metrics["loss_to_baseline/sigma"] == pytest.approx(-0.3, abs=0.02)
    assert (metrics["loss_to_baseline_shown/sigma"], metrics["loss_to_baseline_shown/qk-norm"]) == (1, 0)
    assert "loss_to_baseline/pre-ln" not in metrics
    assert "peak_memory_bytes/sigma" not in metrics  # nan: it was not measured
    shaped = study_metrics(widths_study(0.0))
    assert {"best_lr/a/d64", "best_lr/a/d256"} <= set(shaped)


def test_a_plus_in_a_recipes_name_is_spelt_out_for_mlflow():
    assert {"best_loss/qk_plus_v"} <= set(study_metrics(study({"qk+v": Curve()})))


def test_a_recipe_with_one_seed_of_several_is_named_as_not_compared():
    trials = [
        trial(name, 1e-2, seed, loss + 0.001 * seed * loss)
        for name, loss in (("a", 2.3), ("b", 2.0))
        for seed in range(3)
    ]
    verdict = sentences(gathered(["a", "b", "c"], [*trials, trial("c", 1e-2, 0, 2.5)], seeds=3, grid=(1e-2,)))
    assert "Not compared with b, for want of two seeds that both have: c." in verdict
    assert not [sentence for sentence in verdict if sentence.startswith("Not told apart")]


def test_initial_losses_of_runs_that_all_diverged_make_no_winner():
    def diverged(name: str, seed: int, initial: float):
        summary = {"status": "diverged", "val_loss": math.nan, "initial_loss": initial + 0.001 * seed}
        return trial(name, 1e-2, seed, math.nan, summary=summary)

    trials = [diverged(name, seed, initial) for name, initial in (("a", 5.60), ("b", 5.55)) for seed in range(3)]
    verdict = sentences(gathered(["a", "b"], trials, seeds=3, grid=(1e-2,)))
    assert verdict[0] == "No recipe is best: every trial that has ended diverged, or ended above its initial loss."
    assert not [sentence for sentence in verdict if " lower " in sentence or "is the best" in sentence]


def test_no_collapse_is_claimed_only_of_what_has_run():
    measured = {"step_S": np.array([1]), "entropy_ratio_S": np.array([0.9]), "max_logit_S": np.array([3.0])}
    done = [trial("a", 1e-3, 0, 2.3, **measured)]
    analysis = gathered(["a"], [*done, trial("a", 1e-1, 0, 2.3, summary=None)], seeds=1, grid=(1e-3, 1e-1))
    assert "No entropy collapse so far, in a part of the trials: a." in sentences(analysis)
    assert not [sentence for sentence in sentences(analysis) if "anywhere" in sentence]
