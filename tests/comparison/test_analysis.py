"""The numbers of a study against hand-made ones."""

import math
from pathlib import Path

import numpy as np
import pytest

from comparison.analysis import analyse, lr_sensitivity, plateau, recipe_result
from comparison.statistics import Estimate
from comparison.study import load_study
from comparison.trial_result import collapse_step, rank_collapse_step
from configs.errors import DataError
from monitoring.recorder import write_json
from tests.comparison.conftest import STUDY, write_study
from tests.comparison.fake_trial import INITIAL
from tests.comparison.synthetic import Curve, trial
from tests.comparison.synthetic import write_study as write_synthetic


def test_lr_sensitivity_by_hand():
    losses = {1e-3: 2.4, 1e-2: 2.3, 3e-2: 2.6, 1e-1: 5.6}
    assert lr_sensitivity(losses, 1e-2) == pytest.approx((0.1 + 0.0 + 0.3 + 3.3) / 4)


@pytest.mark.parametrize(
    ("losses", "expected"),
    [
        ({1e-3: 2.5, 1e-2: 2.35, 3e-2: 2.3, 1e-1: 2.39}, (1e-2, 1e-1)),
        ({1e-3: 2.3, 1e-2: 2.6, 3e-2: 2.31}, (1e-3, 1e-3)),  # unbroken: the far valley does not count
        ({1e-3: 2.3}, (1e-3, 1e-3)),
    ],
)
def test_plateau(losses, expected):
    assert plateau(losses) == expected


def test_collapse_needs_more_than_a_quarter_of_the_heads():
    steps = np.array([1, 10, 20])
    healthy, quarter, more = np.full((2, 4), 0.9), np.full((2, 4), 0.9), np.full((2, 4), 0.9)
    quarter[0, :2] = 0.05
    more[1, :3] = 0.05
    ratio = np.array([0.9, 0.2, 0.2])  # the mean alone would say step 10
    assert collapse_step(steps, ratio, steps, np.stack([healthy, quarter, more])) == 20
    assert collapse_step(steps, ratio, steps, np.stack([healthy, quarter, quarter])) is None


def test_without_heads_the_mean_decides():
    none = np.empty((0,))
    assert collapse_step(np.array([1, 10, 20]), np.array([0.9, 0.31, 0.29]), none.astype(int), none) == 20


def test_a_finished_study(finished_study):
    result = analyse(finished_study.dir).parts[""]
    baseline, sigma = result.recipes["pre-ln"], result.recipes["sigma-reparam"]
    assert [(trial.lr, trial.collapse_step) for trial in baseline.collapsed] == [(3e-2, 60)]
    assert sigma.collapsed == []
    assert (baseline.best_lr, sigma.best_lr) == (1e-3, 3e-2)
    assert sigma.lr_sensitivity.mean == pytest.approx((sigma.losses[1e-3].mean - sigma.best_loss.mean) / 2)
    assert baseline.worst_ratio < 0.2 < sigma.worst_ratio
    assert result.missing == []
    assert result.telling_lr == 3e-2


def test_a_diverged_trial_counts_as_its_initial_loss(study_file):
    study = write_study(load_study(study_file), lambda trial: "diverge" if trial.label.startswith("pre") else "ok")
    result = analyse(study.dir).parts[""]
    assert {spread.mean for spread in result.recipes["pre-ln"].losses.values()} == {INITIAL}
    assert len(result.recipes["pre-ln"].blew_up) == 2


def test_a_partial_study_says_what_is_missing(study_file):
    modes = {("pre-ln", 1e-3): "ok", ("pre-ln", 3e-2): "half"}
    study = write_study(load_study(study_file), lambda trial: modes.get((trial.recipe, trial.lr)))
    result = analyse(study.dir).parts[""]
    assert list(result.recipes) == ["pre-ln"]
    assert [(trial.recipe, trial.lr) for trial in result.missing] == [
        ("sigma-reparam", 1e-3),
        ("pre-ln", 3e-2),
        ("sigma-reparam", 3e-2),
    ]
    assert result.missing[1].step_S.size > 0
    assert math.isnan(result.missing[1].loss)


def test_losses_over_seeds(study_file):
    study_file.write_text(STUDY + "seeds: [0, 1, 2]\n")
    study = write_study(load_study(study_file))
    result = analyse(study.dir).parts[""]
    losses = [trial.loss for trial in result.of("pre-ln", 1e-3)]
    assert result.recipes["pre-ln"].losses[1e-3] == Estimate.of(losses)
    assert Estimate.of(losses).sd == pytest.approx(np.std(losses, ddof=1))


def test_the_best_learning_rate_is_that_of_the_mean_for_all_seeds():
    """Seed 1 is best at 1e-2; the mean at 3e-2."""
    losses = {(1e-2, 0): 2.6, (1e-2, 1): 2.2, (3e-2, 0): 2.3, (3e-2, 1): 2.3}
    recipe = recipe_result("a", [trial("a", lr, seed, loss) for (lr, seed), loss in losses.items()])
    assert recipe.best_lr == 3e-2
    assert recipe.sensitivity_by_seed == pytest.approx({0: 0.15, 1: -0.05})
    assert recipe.lr_sensitivity.mean == pytest.approx(0.05)


STOPPED = {"step": 120, "loss": 3.4, "initial_loss": INITIAL, "reason": "hopeless"}


@pytest.mark.parametrize(("rule", "loss", "bound"), [("above_initial", INITIAL, False), ("behind", 3.4, True)])
def test_a_stopped_trial_has_ended(rule, loss, bound):
    stopped = trial("a", 1e-1, 0, 0.0, summary=None, stopped=STOPPED | {"rule": rule})
    assert (stopped.ended, stopped.loss, stopped.bound, stopped.saved_steps) == (True, loss, bound, 180)
    assert stopped.blew_up != bound
    recipe = recipe_result("a", [stopped, trial("a", 1e-2, 0, 2.3)])
    assert f"{recipe.losses[1e-1]:.1f}" == f"{'≤ ' if bound else ''}{loss:.1f}"
    assert recipe.lr_sensitivity.bound == bound
    assert recipe.stopped == [stopped]


def test_what_befell_a_recipe():
    trials = [
        trial("a", 1e-2, 0, 2.3, spikes=3, collapse_step=80),
        trial("a", 1e-1, 0, 2.5, logged_steps=200, collapse_step=40),
        trial("a", 3e-1, 0, 9.0),
    ]
    recipe = recipe_result("a", trials)
    assert recipe.spikes_per_1000 == pytest.approx(3 * 1000 / 800)
    assert recipe.first_collapse is trials[1]
    assert recipe.blew_up == [trials[2]]
    assert recipe.losses[3e-1].mean == INITIAL


STEPS = np.arange(0, 300, 50)
ALIKE = np.array([0.2, 0.995, 0.3, 0.992, 0.994, 0.999])


@pytest.mark.parametrize(
    ("cosine", "ratio", "expected"),
    [
        (ALIKE, 0.95, 150),  # the one at step 50 passed
        (ALIKE, 0.5, None),  # attention chooses: that is no rank collapse
        (0.5 * ALIKE, 0.95, None),
        (np.array([0.2, 0.2, 0.2, 0.2, 0.995, 0.995]), 0.95, None),  # 50 steps are not enough, even at the end
        (np.array([0.2, 0.995, 0.995, 0.995, 0.2, 0.2]), 0.95, 50),  # it need not last for ever
    ],
)
def test_rank_collapse(cosine, ratio, expected):
    cosine_SL = np.stack([cosine / 2, cosine], axis=1)  # one layer suffices
    assert rank_collapse_step(STEPS, np.full(6, ratio), STEPS, cosine_SL) == expected
    assert rank_collapse_step(STEPS, np.full(6, ratio), STEPS[:0], np.empty((0,))) is None


def test_a_folder_that_is_no_study(tmp_path: Path):
    with pytest.raises(DataError, match=r"holds no study\.yaml"):
        analyse(tmp_path)
    (tmp_path / "study.yaml").write_text("name: [1\n")
    with pytest.raises(DataError, match="is not a study record"):
        analyse(tmp_path)


def test_run_folders_tell_rank_collapse_from_entropy_collapse(tmp_path: Path):
    write_synthetic(tmp_path, {"pre-ln": Curve(), "post-ln": Curve()}, seeds=1, grid=(1e-2, 1e-1))
    result = analyse(tmp_path).parts[""]
    found = {(t.recipe, t.lr): (t.collapse_step, t.rank_collapse_step, t.spikes) for t in result.trials}
    assert found == {
        ("pre-ln", 1e-2): (None, None, 0),
        ("pre-ln", 1e-1): (140, None, 1),
        ("post-ln", 1e-2): (None, None, 0),
        ("post-ln", 1e-1): (None, 120, 0),
    }
    assert result.recipes["pre-ln"].spikes_per_1000 == pytest.approx(1000 / 600)
    assert result.recipes["pre-ln"].peak_memory == 6.1e8
    assert len(result.trials[0].run_id) == 32


@pytest.mark.parametrize("name", ["summary.json", "stopped.json", "failure.json", "signals/step-00000001.npz"])
def test_a_damaged_file_is_one_line_that_says_what_to_do(finished_study, name):
    path = finished_study.trials[0].config.run_dir / name
    path.write_text("[")
    with pytest.raises(DataError, match=f"{path.name}: damaged.*delete"):
        analyse(finished_study.dir)


def test_a_trial_stopped_at_an_infinite_loss_counts_as_its_initial_one(study_file):
    study = write_study(load_study(study_file), lambda trial: "half")
    stopped = {"step": 30, "loss": math.inf, "initial_loss": INITIAL, "rule": "behind", "reason": "behind"}
    write_json(study.trials[0].config.run_dir / "stopped.json", stopped)
    (found,) = [trial for trial in analyse(study.dir).trials if trial.ended]
    assert found.loss == INITIAL
