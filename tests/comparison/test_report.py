"""The report: self-contained, complete, and true to the numbers."""

import io
import re
from html.parser import HTMLParser

import pytest
from rich.console import Console

from comparison import report, verdict
from comparison.analysis import analyse
from comparison.study import load_study
from configs.errors import DataError
from tests.comparison.conftest import STUDY, write_study

PICTURES = {
    "collapse-and-cure.png",
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


def test_report_is_self_contained_and_names_every_run(finished_study):
    path = report.write(finished_study.dir)
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


def test_report_says_who_collapsed_and_when(finished_study):
    sentences = verdict.sentences(analyse(finished_study.dir))
    assert sentences[0] == "pre-ln: attention collapsed at 3e-2 (step 60)."
    assert sentences[1] == "sigma-reparam: no collapse anywhere from 1e-3 to 3e-2."
    assert any(sentence.startswith("One seed") for sentence in sentences)
    page = report.write(finished_study.dir).read_text(encoding="utf-8")
    assert all(sentence in page for sentence in sentences)


def test_verdict_admits_where_the_winner_loses(finished_study):
    result = analyse(finished_study.dir)
    behind = result.recipes["sigma-reparam"].losses[1e-3].mean - result.recipes["pre-ln"].losses[1e-3].mean
    assert result.recipes["sigma-reparam"].best_loss.mean < result.recipes["pre-ln"].best_loss.mean
    expected = f"sigma-reparam is not the best everywhere: at 1e-3 pre-ln is {behind:.2f} ahead."
    assert expected in verdict.sentences(result)


def test_a_partial_study_gives_a_partial_report(study_file):
    study = write_study(load_study(study_file), lambda trial: "ok" if trial.recipe == "pre-ln" else None)
    page = report.write(study.dir).read_text(encoding="utf-8")
    assert "Not complete: 2 of 4 trials have no result yet." in page
    assert "not run" in page


def test_several_seeds_show_their_spread(study_file):
    study_file.write_text(STUDY + "seeds: [0, 1]\n")
    study = write_study(load_study(study_file))
    page = report.write(study.dir).read_text(encoding="utf-8")
    assert " ± " in page
    assert "2 of 2 seeds" in page
    assert "One seed" not in page


def test_nothing_ended_is_an_error_that_says_what_to_do(study_file):
    study = write_study(load_study(study_file), lambda trial: "half")
    with pytest.raises(DataError, match=r"no trial has ended yet; run `steadytrain sweep study\.yaml`"):
        report.write(study.dir)


def test_table_for_the_terminal_fits_80_columns(finished_study):
    console = Console(width=80, record=True, file=io.StringIO())
    console.print(report.table(finished_study.dir))
    text = console.export_text()
    result = analyse(finished_study.dir)
    row = next(line for line in text.splitlines() if line.strip().startswith("pre-ln "))
    losses = [spread.mean for spread in result.recipes["pre-ln"].losses.values()]
    sensitivity = result.recipes["pre-ln"].lr_sensitivity.mean
    assert row.split() == ["pre-ln", f"{losses[0]:.3f}", "✕", f"{losses[1]:.3f}", f"{sensitivity:.3f}"]
    assert "…" not in text
