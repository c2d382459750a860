"""What scripts read: one JSON document on stdout, strict, with the fields that the help names."""

import json
import math
import re
from types import SimpleNamespace

import pytest
from typer.testing import CliRunner

from comparison.statistics import Estimate
from launcher.as_json import as_json
from launcher.cli import COMMANDS, app

FOR_PEOPLE = {"train", "watch", "pictures", "logs", "sync", "import"}
"""What they leave is in the run's folder, or their exit code says it."""


def run(*arguments: str):
    result = CliRunner().invoke(app, list(arguments), catch_exceptions=False)
    return json.loads(result.stdout, parse_constant=lambda word: pytest.fail(f"{word} is no JSON"))


def test_every_other_command_has_it() -> None:
    names = {command.__name__.removesuffix("_") for command in COMMANDS}
    have = {name for name in names if re.search(r"^  --json ", CliRunner().invoke(app, [name, "-h"]).output, re.M)}
    assert have == names - FOR_PEOPLE


def test_numbers_that_are_not_finite_are_null() -> None:
    values = {"a": [math.nan, (1.5, -math.inf)], "b": {"c": "NaN"}}
    assert json.loads(as_json(values)) == {"a": [None, [1.5, None]], "b": {"c": "NaN"}}


def test_prepare(monkeypatch: pytest.MonkeyPatch) -> None:
    prepared = SimpleNamespace(
        train_tokens=1000, train_documents=9, validation_tokens=100, validation_documents=1, vocab_size=257, reused=True
    )
    monkeypatch.setattr("data.prepare.prepare", lambda *_, **__: prepared)
    assert run("prepare", "stdlib", "--out", "d", "--json") == {
        "out": "d",
        "reused": True,
        "vocab_size": 257,
        "train": {"tokens": 1000, "documents": 9},
        "validation": {"tokens": 100, "documents": 1},
    }
    split = SimpleNamespace(tokens=5)
    manifest = SimpleNamespace(train=split, validation=split, fingerprint="abc")
    monkeypatch.setattr("data.dataset.verify", lambda folder: manifest)
    assert run("prepare", "--check", "d", "--json") == {"out": "d", "tokens": 10, "fingerprint": "abc"}


def test_submit_and_cancel(monkeypatch: pytest.MonkeyPatch) -> None:
    from launcher.jobs.cancel import Cancelled

    job = SimpleNamespace(ids=["7", "8"], run_dir="runs/a")
    monkeypatch.setattr("launcher.jobs.request.read_request", lambda *_, **__: None)
    monkeypatch.setattr(
        "launcher.jobs.submit.submit", lambda *_, **__: SimpleNamespace(job=job, continued_from="runs/a/step-1")
    )
    assert run("submit", "c.yaml", "--json") == {
        "jobs": ["7", "8"],
        "cluster": "local",
        "run": "runs/a",
        "continued_from": "runs/a/step-1",
    }
    found = [Cancelled("runs/a", "running", ["7"], []), Cancelled("runs/b", "finished", [], [])]
    monkeypatch.setattr("launcher.jobs.cancel.cancel", lambda paths: found)
    assert run("cancel", "runs/a", "runs/b", "--json") == [
        {"run": "runs/a", "was": "running", "cancelled": ["7"], "not_ended": []},
        {"run": "runs/b", "was": "finished", "cancelled": [], "not_ended": []},
    ]


def test_two_kinds_of_output_at_once_are_a_mistake() -> None:
    for arguments in (["submit", "c.yaml", "--dry-run"], ["sweep", "s.yaml"], ["spike", "runs/a", "--replay"]):
        result = CliRunner().invoke(app, [*arguments, "--json"])
        assert result.exit_code == 2 and result.stderr.startswith("command line: --")


@pytest.mark.parametrize("option", ["--tokens=inf", "--tokens=1e300", "--vocab-size=99999999999999999999", "--nodes=0"])
def test_absurd_plans_are_mistakes(option: str) -> None:
    """Infinity is no JSON, and no tensor has so many rows."""
    result = CliRunner().invoke(app, ["plan", "configs/models/8b.yaml", "--json", option])
    assert result.exit_code == 2 and f"'{option.partition('=')[0]}'" in result.stderr and result.stdout == ""


def test_an_estimate_of_one_seed_has_no_deviation() -> None:
    from comparison.as_json import _estimate

    assert _estimate(Estimate.of([2.5])) == {"mean": 2.5, "sd": None, "seeds": 1, "bound": False}
