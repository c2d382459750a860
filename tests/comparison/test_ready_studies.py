"""The studies of configs/studies: each loads without its data, and says of itself what is so."""

import re
from pathlib import Path

import pytest

from comparison.budget import matrix_parameters
from comparison.study import load_study
from configs.checks import resolve

ROOT = Path(__file__).parents[2]
STUDIES = sorted((ROOT / "configs" / "studies").glob("*.yaml"))
NODES = {"125m": 1, "1b": 2, "8b": 8}
"""Of a trial on a Slurm site, as its study's head has them."""
VOCABULARY, PEAK, SHARE = 32_000, 989e12, 0.4


@pytest.mark.parametrize("path", STUDIES, ids=lambda path: path.stem)
def test_every_study_loads(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # where there are no data
    study = load_study(path)
    grid = len(study.recipes) * max(1, len(study.shapes)) * len(study.learning_rates) * len(study.seeds)
    assert (study.name, len(study.trials)) == (path.stem, grid)
    counts = [int(count) for count in re.findall(r"([\d]+) trials", path.read_text())]
    assert counts in ([], [grid])  # what its head says, if it does


@pytest.mark.parametrize("name", NODES)
def test_expected_hours_follow_from_the_formula(name: str) -> None:
    path = ROOT / "configs" / "studies" / f"{name}.yaml"
    study, text = load_study(path), path.read_text().replace(",", "")
    found = re.search(r"6 x (\d+) parameters x (\S+) tokens x (\d+) trials / .* = (\d+) GPU hours", text)
    assert found is not None
    parameters, tokens, trials, hours = (float(part) for part in found.groups())
    assert parameters == matrix_parameters(study.base.model, VOCABULARY)
    assert study.budget is not None and tokens == study.budget.tokens
    assert trials == len(study.trials)
    assert hours == pytest.approx(6 * parameters * tokens * trials / (PEAK * SHARE * 3600), abs=0.5)
    assert study.base.training.precision == "bf16"
    assert f"--nodes {NODES[name]} " in text
    for trial in study.trials:
        resolve(trial.config, 8 * NODES[name])  # raises where a recipe does not fit the layout


def test_the_study_of_every_recipe_has_them_all() -> None:
    recipes = {path.stem for path in (ROOT / "configs" / "recipes").glob("*.yaml")}
    study = load_study(ROOT / "configs" / "studies" / "every-recipe.yaml")
    assert set(study.recipes) == recipes
    assert next(iter(study.recipes)) == "pre-ln"  # the baseline
