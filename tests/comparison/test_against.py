"""Two studies side by side."""

import io
from dataclasses import replace

import pytest
from rich.console import Console
from typer.testing import CliRunner

from comparison.against import against, sentences, table, write
from configs.errors import DataError
from launcher.cli import app
from tests.comparison.synthetic import Curve, gathered, study, trial, write_study

RECIPES = {"pre-ln": Curve(), "sigma": Curve(), "only-here": Curve()}


def other(recipes, base=None, **settings):
    """A second study, with another name and base."""
    made = study(recipes, **settings)
    record = made.record.model_copy(update={"name": "other", "base": base or made.record.base})
    return replace(made, record=record, dir=made.dir.with_name("other"))


def test_differences_over_what_both_have():
    ours = study(RECIPES, seeds=5, noise=0.01, draw=1)
    grid = (1e-3, 3e-3, 1e-2, 3e-2, 2.0)
    theirs = other({"pre-ln": Curve(), "sigma": Curve(best=2.0)}, seeds=4, noise=0.01, draw=2, grid=grid)
    found = against(ours, theirs)
    assert [pair.label for pair in found.pairs] == ["pre-ln", "sigma"]
    assert found.seeds == [0, 1, 2, 3]
    assert found.learning_rates == [1e-3, 3e-3, 1e-2, 3e-2]
    assert set(found.pairs[0].ours.losses) == set(found.learning_rates)
    assert [pair.loss.shown for pair in found.pairs] == [False, True]
    assert found.pairs[1].loss.mean == pytest.approx(0.3, abs=0.05)
    words = sentences(found)
    assert words[0].startswith("The lowest loss is higher in synthetic with sigma (+0.")
    assert words[0].endswith("no difference shown for pre-ln.")
    assert "LR sensitivity shown between synthetic and other." in words[1]
    assert any(sentence.startswith("Not compared") and "only-here" in sentence for sentence in words)


def test_settings_that_differ():
    base = {"model": {"hidden_size": 64, "layers": 8}, "run": {"name": "x"}}
    found = against(study(RECIPES), other(RECIPES, base=base))
    assert found.settings["model.layers"] == (4, 8)
    assert "model.hidden_size" not in found.settings and "run.name" not in found.settings
    assert any("differ in model.layers, " in sentence for sentence in sentences(found))
    assert "The studies' settings are the same." in sentences(against(study(RECIPES), other(RECIPES)))


def test_rules_that_end_trials_are_settings():
    theirs = other(RECIPES)
    record = theirs.record.model_copy(update={"stopping": {"behind": 1.0}, "budget": {"tokens": 1e6}})
    settings = against(study(RECIPES), replace(theirs, record=record)).settings
    assert settings == {"stopping.behind": ("-", 1.0), "budget.tokens": ("-", 1e6)}


def test_one_seed_has_no_intervals():
    words = sentences(against(study(RECIPES, seeds=1), other(RECIPES, seeds=1)))
    assert words[0].startswith("No recipe can be compared over two seeds")


def test_trials_of_different_seeds_are_not_called_one_seed():
    trials = [trial("pre-ln", lr, seed, 2.3) for lr, seed in ((1e-3, 0), (1e-2, 1))]
    partial = gathered(["pre-ln"], trials, seeds=2, grid=(1e-3, 1e-2))
    words = sentences(against(partial, partial))
    assert words[0].startswith("No recipe can be compared over two seeds")


def test_nothing_in_common_is_one_line():
    with pytest.raises(
        DataError, match="no recipe of the same name has ended at the same learning rate and seed"
    ) as raised:
        against(study(RECIPES), other({"new": Curve()}))
    assert "\n" not in str(raised.value)


def test_the_page_and_the_table(tmp_path):
    (tmp_path / "of mine").mkdir()
    ours = replace(study(RECIPES), dir=tmp_path / "of mine")
    found = against(ours, other(RECIPES, draw=3))
    page = write(found).read_text(encoding="utf-8")
    assert (tmp_path / "of mine/against-other.html").exists()
    assert page.count("data:image/png;base64,") == 2
    assert f"steadytrain compare &#39;{tmp_path / 'of mine'}&#39; --against" in page
    console = Console(width=120, record=True, file=io.StringIO())
    console.print(table(found))
    text = console.export_text()
    assert all(pair.label in text for pair in found.pairs)


def test_the_command(tmp_path):
    here = write_study(tmp_path / "here", {"pre-ln": Curve()}, seeds=2, grid=(1e-2,))
    there = write_study(tmp_path / "there", {"sigma": Curve()}, seeds=2, grid=(1e-2,))
    result = CliRunner().invoke(app, ["compare", str(here), "--against", str(here)])
    assert result.exit_code == 0
    assert "No difference of the lowest loss shown" in " ".join(result.stdout.split())
    assert (here / "against-synthetic.html").exists()
    result = CliRunner().invoke(app, ["compare", str(here), "--against", str(there)])
    assert (result.exit_code, len(result.stderr.splitlines())) == (2, 1)
