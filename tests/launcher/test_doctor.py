"""`steadytrain doctor`: lines and JSON, exit codes, mistakes."""

import json

import pytest
from typer.testing import CliRunner

from launcher.cli import app
from launcher.doctor.finding import Finding, ok, problem, warning

GOOD, ODD, BAD = ok("a", "fine"), warning("b", "odd", "look"), problem("c", "broken", "mend it")


def run(monkeypatch: pytest.MonkeyPatch, findings: list[Finding], *options: str):
    asked = []
    monkeypatch.setattr("launcher.doctor.groups.examine", lambda what: asked.append(what) or iter(findings))
    return CliRunner().invoke(app, ["doctor", *options]), asked


@pytest.mark.parametrize(("findings", "code"), [([GOOD], 0), ([GOOD, ODD], 0), ([BAD, GOOD], 1)])
def test_only_a_problem_is_an_error(monkeypatch: pytest.MonkeyPatch, findings, code) -> None:
    assert run(monkeypatch, findings)[0].exit_code == code


def test_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    result, _ = run(monkeypatch, [GOOD, ODD, BAD])
    assert [" ".join(line.split()) for line in result.stdout.splitlines()] == [
        "ok a fine", "warning b odd", "fix: look", "problem c broken", "fix: mend it",
        "3 checks: 1 problem, 1 warning",
    ]  # fmt: skip


def test_json_is_all_of_stdout(monkeypatch: pytest.MonkeyPatch) -> None:
    result, asked = run(monkeypatch, [GOOD, BAD], "--json", "--runs", "r", "--tracking-uri", "u", "--cluster", "lab")
    assert json.loads(result.stdout) == {
        "verdict": "problem",
        "checks": [
            {"check": "a", "verdict": "ok", "found": "fine", "fix": None},
            {"check": "c", "verdict": "problem", "found": "broken", "fix": "mend it"},
        ],
    }
    assert (asked[0].runs, asked[0].tracking_uri, asked[0].cluster) == ("r", "u", "lab")


def test_a_site_that_is_not_there_is_a_mistake(monkeypatch: pytest.MonkeyPatch) -> None:
    result, asked = run(monkeypatch, [], "--cluster", "labb")
    assert result.exit_code == 2 and result.stderr.startswith("--cluster = labb: must be ") and not asked
