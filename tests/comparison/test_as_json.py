"""The numbers of studies for scripts: as the analysis has them, and JSON that every parser takes."""

import json
from pathlib import Path

from comparison.against import against
from comparison.as_json import study as as_study
from comparison.as_json import two
from launcher.as_json import as_json
from tests.comparison.synthetic import Curve, study
from tests.comparison.test_against import other

RECIPES = {"pre-ln": Curve(), "sigma": Curve()}


def test_one_study() -> None:
    made = study(RECIPES, seeds=3, noise=0.01)
    read = json.loads(as_json(as_study(made, Path("r.html"))), parse_constant=lambda word: int(word))
    assert (read["study"], read["report"], read["trials"], read["missing"]) == (
        made.record.name, "r.html", len(made.trials), 0,
    )  # fmt: skip
    assert [recipe["recipe"] for recipe in read["recipes"]] == ["pre-ln", "sigma"]
    (part,) = made.parts.values()
    first, expected = read["recipes"][0], part.recipes["pre-ln"]
    assert first["best_lr"] == expected.best_lr and first["best_loss"]["mean"] == expected.best_loss.mean
    assert first["best_loss"]["seeds"] == 3 and first["best_loss"] == first["losses"][f"{expected.best_lr:g}"]
    assert read["verdict"] and all(isinstance(sentence, str) for sentence in read["verdict"])


def test_two_studies() -> None:
    found = against(study(RECIPES, seeds=3, noise=0.01, draw=1), other(RECIPES, seeds=3, noise=0.01, draw=2))
    read = json.loads(as_json(two(found, Path("a.html"))))
    assert [recipe["recipe"] for recipe in read["recipes"]] == ["pre-ln", "sigma"]
    assert read["recipes"][0]["loss"]["mean"] == found.pairs[0].loss.mean
    one_seed = against(study(RECIPES, seeds=1), other(RECIPES, seeds=1))
    assert json.loads(as_json(two(one_seed, Path("a.html"))))["recipes"][0]["loss"] is None
