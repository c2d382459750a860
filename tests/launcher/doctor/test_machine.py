"""Names, limits, shared memory, and the disk of the runs folder."""

import os
import resource
from pathlib import Path

import pytest

from launcher.doctor import disk
from launcher.doctor.disk import clock, free_space, speed
from launcher.doctor.finding import Asked
from launcher.doctor.machine import host_name, loopback, open_files, shared_memory

GIB = 2**30


def test_names_that_resolve_here_elsewhere_and_nowhere(monkeypatch: pytest.MonkeyPatch) -> None:
    assert host_name("localhost").verdict == "ok"
    assert host_name("no-such-host.invalid").verdict == "problem"
    elsewhere = host_name("192.0.2.1")  # an address that is nobody's
    assert elsewhere.verdict == "problem" and "no address of this machine" in elsewhere.found


def test_this_machine_reaches_itself() -> None:
    assert loopback().verdict == "ok"


def test_limits() -> None:
    assert shared_memory(2**26, 2**26).verdict == "warning"  # a container's default
    assert shared_memory(16 * GIB, 8 * GIB).verdict == "ok"
    assert open_files(256, 4096).verdict == "warning"
    assert open_files(1024, 524_288).verdict == "ok"
    assert open_files(resource.RLIM_INFINITY, resource.RLIM_INFINITY).verdict == "ok"


@pytest.mark.parametrize(
    ("finding", "verdict"),
    [
        (free_space(2**28), "problem"),
        (free_space(5 * GIB), "warning"),
        (free_space(50 * GIB), "ok"),
        (speed(0.1), "ok"),
        (speed(10), "warning"),
        (clock(0.1), "ok"),
        (clock(-5), "warning"),
        (clock(100), "problem"),
    ],
)
def test_verdicts_on_a_disk(finding, verdict) -> None:
    assert finding.verdict == verdict and (finding.fix is None) == (verdict == "ok")


def checks(folder: Path) -> dict[str, str]:
    return {finding.check: finding.verdict for finding in disk.check(Asked(str(folder)))}


def test_a_folder_that_is_not_there_yet_is_tried_where_it_will_be(tmp_path: Path) -> None:
    names = ["runs folder", "disk space", "disk speed", "file locks", "clock"]
    found = checks(tmp_path / "a" / "runs")
    assert list(found) == names and found["runs folder"] == found["file locks"] == "ok"
    assert list(tmp_path.iterdir()) == []


def test_a_file_in_its_place_and_one_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    assert checks(tmp_path / "file" / "runs") == {"runs folder": "problem"}

    def refuse(*_, **__):
        raise PermissionError(13, os.strerror(13))

    monkeypatch.setattr(os, "mkdir", refuse)
    assert checks(tmp_path) == {"runs folder": "problem"}


def test_a_full_disk_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_):
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr(disk, "_write", full)
    assert checks(tmp_path)["runs folder"] == "problem"


def test_locks_that_do_not_hold_are_a_problem(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(disk, "TRY_LOCK", "")  # as if the other process had got it
    assert checks(tmp_path)["file locks"] == "problem"
