"""Which Slurm is taken, and what is said where none can be had."""

import shutil
from pathlib import Path

import pytest

from cluster import files, packages
from configs.errors import ConfigError, LaunchError


def executable(file: Path) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("#!/bin/sh\nexit 0\n")
    file.chmod(0o755)
    return file


@pytest.fixture
def nothing_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine without Slurm and without apt; its PATH is an empty folder."""
    path = tmp_path / "bin"
    path.mkdir()
    monkeypatch.setenv("PATH", str(path))
    monkeypatch.setenv(packages.HOME_VARIABLE, str(tmp_path / "home"))
    monkeypatch.setattr(packages, "_SYSTEM_FOLDERS", ())
    return path


def test_an_installed_slurm_is_taken_as_it_is(nothing_here: Path) -> None:
    for name in (*packages.DAEMONS, *packages.CLIENTS):
        executable(nothing_here / name)
    slurm = packages.install()
    assert slurm.prefix is None and slurm.plugins is None and slurm.libraries == ""
    assert slurm.command("srun") == [str(nothing_here / "srun")]


def test_the_programs_of_a_cluster_are_no_installed_slurm(
    nothing_here: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in (*packages.DAEMONS, *packages.CLIENTS):
        executable(nothing_here / name)
    for name in packages.CLIENTS:
        executable(tmp_path / "lab" / "bin" / name)
    (tmp_path / "lab" / packages.STATE_FILE).touch()
    monkeypatch.setenv("PATH", f"{tmp_path / 'lab' / 'bin'}:{nothing_here}")
    assert packages.install().command("srun") == [str(nothing_here / "srun")]


def test_half_a_slurm_is_none(nothing_here: Path) -> None:
    for name in ("slurmd", "munged", *packages.CLIENTS):  # a compute node of some cluster: no slurmctld
        executable(nothing_here / name)
    assert packages.find() is None


def test_unpacked_packages_go_before_an_installed_slurm(nothing_here: Path, tmp_path: Path) -> None:
    for name in (*packages.DAEMONS, *packages.CLIENTS):
        executable(nothing_here / name)
        executable(tmp_path / "home" / "packages" / "usr" / "bin" / name)
    found = packages.find()
    assert found is not None and found.prefix == tmp_path / "home" / "packages"


def test_without_apt_one_line_says_so(nothing_here: Path) -> None:
    with pytest.raises(LaunchError, match=r"^Slurm: .* no apt-get to download them; install .*$"):
        packages.install()


def test_what_apt_says_is_passed_on(nothing_here: Path) -> None:
    apt = executable(nothing_here / "apt-get")
    executable(nothing_here / "dpkg-deb")
    apt.write_text("#!/bin/sh\necho 'E: Could not resolve deb.example.org' >&2\nexit 100\n")
    with pytest.raises(LaunchError, match=r"^Slurm: apt-get failed: E: Could not resolve deb\.example\.org; .*$"):
        packages.install()


def test_a_folder_that_cannot_be_made_is_named(nothing_here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(packages.HOME_VARIABLE, "/proc/mine")
    with pytest.raises(ConfigError, match=r"^/proc/mine: .*; choose another folder by STEADYTRAIN_CLUSTER_DIR$"):
        packages.install()


def test_the_dynamic_loader_of_a_program() -> None:
    shell = shutil.which("sh")
    assert shell is not None
    assert Path(packages._dynamic_loader(Path(shell))).exists()


def test_a_long_folder_gets_a_private_short_path(tmp_path: Path) -> None:
    folder = tmp_path / ("x" * files.LONGEST_ROOT)
    root = files.root_of(folder)
    try:
        assert len(str(root)) <= files.LONGEST_ROOT and root.readlink() == folder
        assert files.root_of(folder) == root
        root.parent.chmod(0o755)
        with pytest.raises(LaunchError, match=r"must be a folder of yours with mode 0700"):
            files.root_of(folder)
    finally:
        files.remove_link(root, folder)
    assert not root.parent.exists()
