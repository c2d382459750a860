"""Versions and compilers."""

from pathlib import Path

import pytest

from launcher.doctor import software
from launcher.doctor.software import compiler, packages, python

INSTALLED = {"torch": "2.13.0+cpu", "numpy": "2.3.1"}


@pytest.fixture(autouse=True)
def needs_numpy_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(software, "_required", lambda: ["numpy"])


def verdicts(pinned, installed) -> list[tuple[str, str]]:
    return [(finding.check, finding.verdict) for finding in packages(pinned, installed)]


def test_an_old_python_is_a_problem() -> None:
    assert python((3, 10, 9)).verdict == "problem"
    assert python((3, 11, 0)).verdict == "ok"


def test_the_build_of_a_version_does_not_count() -> None:
    assert verdicts({"torch": "2.13.0", "numpy": "2.3.1"}, INSTALLED) == [("packages", "ok"), ("torch version", "ok")]


def test_another_torch_is_a_problem_another_numpy_a_warning() -> None:
    found = list(packages({"torch": "2.12.1", "numpy": "2.3.0", "absent": "1"}, INSTALLED))
    assert [(finding.check, finding.verdict) for finding in found] == [
        ("packages", "warning"),
        ("torch version", "problem"),
    ]
    assert found[0].found == "not as pinned: numpy 2.3.1 (pinned: 2.3.0)"
    assert found[1].found == "2.13.0+cpu (pinned: 2.12.1)"


def test_what_is_needed_and_not_there_is_a_problem() -> None:
    found = next(packages({"torch": "2.13.0"}, {"torch": "2.13.0"}))
    assert (found.verdict, found.found) == ("problem", "not installed: numpy")


def test_many_that_differ_are_counted() -> None:
    pinned = {f"p{index}": "1" for index in range(6)}
    (found,) = packages(pinned, {"numpy": "1"} | dict.fromkeys(pinned, "2"))
    assert found.found.endswith("p3 2 (pinned: 1), and 2 more")


def test_without_a_lock_nothing_is_compared() -> None:
    assert [finding.verdict for finding in packages(None, INSTALLED)] == ["ok"]


def test_the_checkout_s_lock_is_read() -> None:
    pinned = software._pinned(software.LOCK)
    assert pinned is not None and "torch" in pinned and "pydantic" in pinned


def test_a_compiler_that_is_absent_works_or_fails(tmp_path: Path) -> None:
    assert compiler("no-such-compiler").verdict == "warning"
    broken = tmp_path / "cxx"
    broken.write_text("#!/bin/bash\necho 'fatal error: Python.h: No such file' >&2; exit 1\n")
    broken.chmod(0o755)
    found = compiler(str(broken))
    assert found.verdict == "warning" and found.found.endswith("does not compile: fatal error: Python.h: No such file")
