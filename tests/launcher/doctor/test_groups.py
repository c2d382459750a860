"""Groups of checks as processes: what they find, and what becomes of one that hangs, dies or says nothing."""

import json
import sys
from pathlib import Path

import psutil
import pytest

from launcher.doctor.finding import Asked
from launcher.doctor.groups import FIXES, LIMITS, examine

FOUND = '{"check": "a", "verdict": "ok", "found": "b", "fix": null}'


@pytest.fixture
def instead(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Put a shell script in the place of the groups' Python."""

    def put(script: str) -> None:
        path = tmp_path / "python"
        path.write_text(f"#!/bin/bash\n{script}\n")
        path.chmod(0o755)
        monkeypatch.setattr(sys, "executable", str(path))

    return put


def test_every_group_has_a_fix_for_its_own_failure() -> None:
    assert LIMITS.keys() == FIXES.keys()


def test_options_go_in_and_findings_come_out(instead, tmp_path: Path) -> None:
    instead(f"cat > {tmp_path}/asked; echo '{FOUND}'")
    (finding,) = examine(Asked("runs", "http://me:secret@host", "lab"), {"disk": 30})
    assert (finding.check, finding.verdict, finding.found, finding.fix) == ("a", "ok", "b", None)
    asked = json.loads((tmp_path / "asked").read_text())  # not on the command line: others could read the password
    assert asked == {"runs": "runs", "tracking_uri": "http://me:secret@host", "cluster": "lab"}


@pytest.mark.parametrize(
    ("script", "found"),
    [
        ("echo what; echo why >&2; exit 3", "why"),
        ("exit 3", "its process ended with exit code 3"),
        ("kill -SEGV $$", "its process was killed by SIGSEGV"),
        ("exec 0<&-; exit 4", "its process ended with exit code 4"),
    ],
)
def test_a_group_that_dies_is_a_problem(instead, script: str, found: str) -> None:
    instead(script.replace("echo what", f"echo '{FOUND}'"))
    *before, last = examine(Asked("runs"), {"devices": 30})
    assert [finding.check for finding in before] == (["a"] if "what" in script else [])
    assert (last.check, last.verdict, last.found, last.fix) == ("devices", "problem", found, FIXES["devices"])


def test_a_group_that_hangs_is_killed_with_what_it_started(instead, tmp_path: Path) -> None:
    instead(f"echo '{FOUND}'; sleep 1000 & echo $! > {tmp_path}/pid; wait")
    first, last = examine(Asked("runs"), {"slurm": 1.0})
    assert (first.verdict, last.verdict, last.found) == ("ok", "problem", "no answer within 1 s")
    pid = int((tmp_path / "pid").read_text())
    psutil.wait_procs([psutil.Process(pid)] if psutil.pid_exists(pid) else [], timeout=10)
    assert not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE


def test_real_groups_find_this_machine_well(tmp_path: Path) -> None:
    limits = {name: LIMITS[name] for name in ("software", "machine", "disk", "tracking")}
    found = {finding.check: finding for finding in examine(Asked(str(tmp_path / "runs")), limits)}
    assert {finding.verdict for finding in found.values()} <= {"ok", "warning"}, found
    assert {"Python", "host name", "disk speed", "file locks", "MLflow store"} <= found.keys()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_torch_and_two_processes(tmp_path: Path) -> None:
    limits = {name: LIMITS[name] for name in ("devices", "processes")}
    found = {finding.check: finding.verdict for finding in examine(Asked(str(tmp_path)), limits)}
    assert {"torch build": "ok", "product on cpu": "ok", "processes (gloo)": "ok"}.items() <= found.items()
