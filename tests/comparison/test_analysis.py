"""The numbers of a study against hand-made ones."""

import math
from pathlib import Path

import numpy as np
import pytest

from comparison.analysis import Spread, analyse, collapse_step, lr_sensitivity, plateau
from comparison.study import load_study
from configs.errors import DataError
from tests.comparison.conftest import STUDY, write_study
from tests.comparison.fake_trial import INITIAL


def test_lr_sensitivity_by_hand():
    assert lr_sensitivity([2.4, 2.3, 2.6, 5.6]) == pytest.approx((0.1 + 0.0 + 0.3 + 3.3) / 4)


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
    result = analyse(finished_study.dir)
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
    result = analyse(study.dir)
    assert {spread.mean for spread in result.recipes["pre-ln"].losses.values()} == {INITIAL}
    assert len(result.recipes["pre-ln"].diverged) == 2


def test_a_partial_study_says_what_is_missing(study_file):
    modes = {("pre-ln", 1e-3): "ok", ("pre-ln", 3e-2): "half"}
    study = write_study(load_study(study_file), lambda trial: modes.get((trial.recipe, trial.lr)))
    result = analyse(study.dir)
    assert list(result.recipes) == ["pre-ln"]
    assert [(trial.recipe, trial.lr) for trial in result.missing] == [
        ("sigma-reparam", 1e-3),
        ("pre-ln", 3e-2),
        ("sigma-reparam", 3e-2),
    ]
    assert result.missing[1].step_S.size > 0
    assert math.isnan(result.missing[1].loss)


def test_spread_over_seeds(study_file):
    study_file.write_text(STUDY + "seeds: [0, 1, 2]\n")
    study = write_study(load_study(study_file))
    result = analyse(study.dir)
    losses = [trial.loss for trial in result.of("pre-ln", 1e-3)]
    spread = result.recipes["pre-ln"].losses[1e-3]
    assert spread == Spread(pytest.approx(np.mean(losses)), pytest.approx(np.std(losses, ddof=1)), 3)
    assert f"{Spread(2.0, 0.5, 3):.2f}" == "2.00 ± 0.50"
    assert f"{Spread.of([2.0]):.2f}" == "2.00"


def test_a_folder_that_is_no_study(tmp_path: Path):
    with pytest.raises(DataError, match=r"holds no study\.yaml"):
        analyse(tmp_path)
    (tmp_path / "study.yaml").write_text("name: [1\n")
    with pytest.raises(DataError, match="is not a study record"):
        analyse(tmp_path)
