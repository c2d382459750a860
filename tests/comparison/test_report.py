"""The report: self-contained, complete, and true to the numbers."""

import io
import re
from html.parser import HTMLParser

import pytest
from rich.console import Console

from comparison import report
from comparison.analysis import analyse
from comparison.report_rows import anchor
from comparison.study import load_study
from comparison.table import table
from comparison.verdict import sentences
from configs.errors import DataError
from tests.comparison import synthetic
from tests.comparison.conftest import STUDY, write_study

PICTURES = {
    "collapse-and-cure.png",
    "losses.png",
    "loss-vs-learning-rate.png",
    "attention-over-steps.png",
    "entropy-per-head.png",
    "learning-rate-sensitivity.png",
}


class Elements(HTMLParser):
    """Collects (tag, attributes)."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.found.append((tag, dict(attrs)))


def undrawn(analysis) -> str:
    """The page without its pictures."""
    return report.page(analysis, {}, {})


def terminal(analysis, width: int = 80) -> str:
    console = Console(width=width, record=True, file=io.StringIO())
    console.print(table(analysis))
    return console.export_text()


def test_report_is_self_contained_and_names_every_run(finished_study):
    path = report.write(analyse(finished_study.dir))
    page = path.read_text(encoding="utf-8")
    elements = Elements(page).found
    assert {file.name for file in finished_study.dir.glob("*.png")} == PICTURES
    images = [attributes for tag, attributes in elements if tag == "img"]
    assert len(images) == len(PICTURES)
    assert all(image["src"].startswith("data:image/png;base64,") and len(image["alt"]) > 80 for image in images)
    dark = [attributes for tag, attributes in elements if tag == "source"]
    assert all(source["srcset"].startswith("data:") and "dark" in source["media"] for source in dark)
    assert not re.search(r"""(?:src|href|url)\s*[=(]\s*["']?(?:https?:)?//""", page)
    for trial in finished_study.trials:
        assert f"<code>{trial.config.run_dir}</code>" in page
        assert f"steadytrain train runs/demo/configs/{trial.config.run.name}.yaml --overwrite" in page


def test_every_link_of_a_number_leads_to_its_trials(finished_study):
    (finished_study.trials[0].config.run_dir / "mlflow_run_id").write_text("f00d\n")
    page = undrawn(analyse(finished_study.dir))
    elements = Elements(page).found
    targets = {attributes["href"][1:] for tag, attributes in elements if tag == "a" and attributes["href"][0] == "#"}
    anchors = [attributes["id"] for tag, attributes in elements if attributes.get("id")]
    assert len(targets) == 4
    assert targets == set(anchors) and len(anchors) == 4
    folders = [attributes["href"] for tag, attributes in elements if tag == "a" and attributes["href"][0] != "#"]
    assert folders and all((finished_study.dir / folder).is_dir() for folder in folders)
    assert "<code>f00d</code>" in page


def test_a_partial_study_gives_a_partial_report(study_file):
    study = write_study(load_study(study_file), lambda trial: "ok" if trial.recipe == "pre-ln" else None)
    analysis = analyse(study.dir)
    assert set(report.draw(analysis, report.LIGHT)) >= {"losses", "loss-vs-learning-rate"}
    page = undrawn(analysis)
    assert "Not complete: 2 of 4 trials have no result yet." in page
    assert "not run" in page


def test_several_seeds_show_their_intervals(study_file):
    study_file.write_text(STUDY + "seeds: [0, 1]\n")
    study = write_study(load_study(study_file))
    analysis = analyse(study.dir)
    page = undrawn(analysis)
    best = analysis.parts[""].recipes["pre-ln"].best_loss
    assert f"{best.mean:.3f} [{best.interval[0]:.3f}, {best.interval[1]:.3f}]" in page
    assert "2 of 2 seeds" in page
    assert "One seed" not in page


def test_nothing_ended_is_an_error_that_says_what_to_do(study_file):
    study = write_study(load_study(study_file), lambda trial: "half")
    with pytest.raises(DataError, match=r"no trial has ended yet; run `steadytrain sweep study\.yaml`"):
        report.write(analyse(study.dir))


def test_table_for_the_terminal_fits_80_columns(finished_study):
    analysis = analyse(finished_study.dir)
    text = terminal(analysis)
    recipe = analysis.parts[""].recipes["pre-ln"]
    row = next(line for line in text.splitlines() if line.strip().startswith("pre-ln "))
    losses = [estimate.mean for estimate in recipe.losses.values()]
    assert row.split() == ["pre-ln", f"{losses[0]:.3f}", "✕", f"{losses[1]:.3f}", f"{recipe.lr_sensitivity.mean:.3f}"]
    assert "…" not in text


def test_twenty_recipes_fit_a_terminal_and_a_page():
    names = ["pre-ln", *(f"post-ln-sigma-reparam-{number}" for number in range(18)), "sigma-reparam"]
    recipes = {name: synthetic.Curve(best=2.0 if name == "sigma-reparam" else 2.3) for name in names}
    analysis = synthetic.study(recipes)
    text = terminal(analysis, width=90)
    rows = [line for line in text.splitlines() if line.split() and line.split()[0] in recipes]
    assert len(rows) == 20 and all(len(row.split()) == 8 for row in rows)
    assert rows[0].split()[0] == "sigma-reparam"  # the best on top
    assert "…" not in text
    assert all(len(sentence) < 400 for sentence in sentences(analysis))
    page = undrawn(analysis)
    assert page.count('<tr id="trials/') == 120
    assert "<details>\n<summary>360 trials" in page  # folded


def test_stopped_and_rank_collapsed_trials_are_named():
    stopped = {"step": 100, "loss": 3.4, "initial_loss": synthetic.INITIAL, "rule": "behind", "reason": "far behind"}
    trials = [
        synthetic.trial("post-ln", 1e-2, 0, 2.4),
        synthetic.trial("post-ln", 1e-1, 0, 3.1, rank_collapse_step=120),
        synthetic.trial("sigma", 1e-2, 0, 2.2),
        synthetic.trial("sigma", 1e-1, 0, 0.0, summary=None, stopped=stopped),
    ]
    analysis = synthetic.gathered(["post-ln", "sigma"], trials, seeds=1, grid=(1e-2, 1e-1))
    page = undrawn(analysis)
    assert "Rank collapse (all tokens alike; attention uniform): post-ln at 1e-1 (step 120)." in page
    assert "stopped at step 100: far behind" in page
    assert "≤ 3.400" in page
    expected = "1 far behind, whose loss (≤) is that at which they were stopped); 200 of 1,200 steps were not run."
    assert any(sentence.endswith(expected) for sentence in sentences(analysis))
    assert "Attention entropy collapsed" not in page


def test_names_with_dashes_do_not_share_an_anchor():
    assert anchor("d64", "ln-post", 1e-2) != anchor("d64-ln", "post", 1e-2)


def test_the_report_of_a_study_with_shapes():
    widths = {"d64": {"model.hidden_size": 64}, "d256": {"model.hidden_size": 256}}
    curves = {"d64": {"a": synthetic.Curve()}, "d256": {"a": synthetic.Curve(centre=-2.4)}}
    analysis = synthetic.study({"a": synthetic.Curve()}, shapes=widths, curve_of=curves, noise=0.002)
    page = undrawn(analysis)
    assert "2 shapes (d64, d256)" in page
    assert "<h2>Recipes: d64</h2>" in page and "<h2>Recipes: d256</h2>" in page
    pictures = report.draw(analysis, report.LIGHT)
    assert {"loss-per-shape", "best-learning-rate-vs-width", "losses.d64", "losses.d256"} <= set(pictures)
