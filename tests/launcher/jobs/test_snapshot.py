"""A queued job runs what was submitted: all of the code, none of the rest, whatever happens to the checkout."""

import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import launcher
from configs.schema import Config
from launcher.jobs import snapshot

ROOT = Path(__file__).parents[3]
JOB_MODULES = """
import importlib, pathlib, pkgutil, sys
import submitit.core._submit, launcher.jobs.decide, launcher.jobs.rank
for package in PACKAGES:
    for module in pkgutil.walk_packages(importlib.import_module(package).__path__, package + "."):
        if not module.name.endswith("__main__"):
            importlib.import_module(module.name)
ours = [module for name, module in sys.modules.items() if name.partition(".")[0] in PACKAGES]
outside = [module.__file__ for module in ours if module.__file__ and not module.__file__.startswith(CODE)]
print(len(ours) > 100, outside)
"""


@pytest.fixture(scope="module")
def checkout(tmp_path_factory) -> Path:
    """A copy of the packages, with what else lies about in a checkout."""
    root = tmp_path_factory.mktemp("checkout")
    for package in snapshot.PACKAGES:
        shutil.copytree(ROOT / package, root / package)
    for path in ("runs/a/code.py", ".venv/lib/x.py", "data/books/train.bin", "data/.cache/x.py", "model/w.safetensors"):
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_text("x = 1")
    return root


@pytest.fixture
def taken(checkout, tmp_path, monkeypatch) -> Path:
    monkeypatch.setattr(launcher, "__file__", str(checkout / "launcher" / "__init__.py"))
    return snapshot.take_code(tmp_path / "it's a snapshot")


def python(code: Path, script: str) -> str:
    """As the batch script runs it: the code's folder is the working folder and PYTHONPATH."""
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=code, env={"PYTHONPATH": str(code)}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()[-1]


def files(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def test_everything_that_git_tracks_in_the_packages_is_there_and_nothing_else(taken):
    if not (ROOT / ".git").exists():
        pytest.skip("no git checkout to compare with")
    tracked = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", *snapshot.PACKAGES],
        cwd=ROOT, capture_output=True, text=True, check=True,
    ).stdout.split()  # fmt: skip
    assert files(taken) == {path for path in tracked if (ROOT / path).exists()}


def test_packages_and_kinds_of_files_are_those_of_the_distribution():
    setuptools = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    packages = {name.rstrip("*") for name in setuptools["packages"]["find"]["include"]}
    assert set(snapshot.PACKAGES) == packages - {
        "cluster",
        "examples",
        "exchange",
        "inference",
        "planning",
    }  # a job needs no Slurm of its own and no plan, and leaves its model to others
    assert set(snapshot.SUFFIXES) == {".py", *(name.lstrip("*") for name in setuptools["package-data"]["*"])}


def test_a_job_imports_all_of_its_code_from_the_snapshot(taken):
    script = f"PACKAGES, CODE = {snapshot.PACKAGES!r}, {str(taken)!r}\n{JOB_MODULES}"
    assert python(taken, script) == "True []"


def test_templates_and_sites_come_along(taken):
    assert {Path(path).suffix for path in files(taken)} == set(snapshot.SUFFIXES)
    assert python(taken, "from configs.sites import load_site; print(load_site('local').kind)") == "local"


def test_an_edit_of_the_checkout_does_not_reach_a_queued_job(taken, checkout):
    edited = checkout / "launcher" / "outcome.py"
    before = edited.read_text()
    edited.write_text("raise RuntimeError('edited')\n")
    shutil.rmtree(checkout / "monitoring")
    try:
        script = "import launcher.outcome, monitoring.recorder; print(launcher.outcome.__file__)"
        assert python(taken, script) == str(taken / "launcher" / "outcome.py")
    finally:
        edited.write_text(before)
        shutil.copytree(ROOT / "monitoring", checkout / "monitoring")


def test_an_installed_package_is_copied_as_well(tmp_path, monkeypatch, checkout):
    """Beside other packages' folders and without .git, as pip lays a wheel out."""
    site = tmp_path / "site-packages"
    for package in snapshot.PACKAGES:
        shutil.copytree(checkout / package, site / package)
    for other in ("torch/__init__.py", "steadytrain-0.1.0.dist-info/METADATA"):
        (site / other).parent.mkdir(parents=True)
        (site / other).write_text("")
    monkeypatch.setattr(launcher, "__file__", str(site / "launcher" / "__init__.py"))
    code = snapshot.take_code(tmp_path / "job")
    assert {path.name for path in code.iterdir()} == set(snapshot.PACKAGES)
    assert python(code, "import launcher.jobs.rank as rank; print(rank.__file__)").startswith(str(code))


def config(**values: object) -> Config:
    return Config.model_validate({"data": {"sources": [{"path": "x"}, {"path": "/abs"}]}} | values)


def test_paths_mean_the_same_in_the_job_s_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    absolute = snapshot.with_absolute_paths(config(run={"dir": "runs"}, init_from="runs/old"))
    assert [source.path for source in absolute.data.sources] == [tmp_path / "x", Path("/abs")]
    assert (absolute.run_dir, absolute.init_from) == (tmp_path / "runs" / "run", tmp_path / "runs" / "old")
    assert snapshot.with_absolute_paths(absolute) == absolute


@pytest.mark.parametrize(
    ("uri", "absolute"),
    [
        (None, None),
        ("http://h:5000", "http://h:5000"),
        ("databricks", "databricks"),
        ("store", "HERE/store"),
        ("/abs", "/abs"),
        ("sqlite:///m.db", "sqlite:///HERE/m.db"),
        ("sqlite:////abs/m.db", "sqlite:////abs/m.db"),
        ("file:store", "file:HERE/store"),
        ("file:///abs", "file:///abs"),
    ],
)
def test_a_tracking_store_is_the_same_one_in_the_job(tmp_path, monkeypatch, uri, absolute):
    monkeypatch.chdir(tmp_path)
    wanted = absolute and absolute.replace("HERE", str(tmp_path))
    assert snapshot.with_absolute_paths(config(tracking={"uri": uri})).tracking.uri == wanted
    if uri is not None:  # the environment goes along with the job: only what would mean another place is frozen
        monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
        frozen = snapshot.with_absolute_paths(config()).tracking.uri
        assert frozen == (None if wanted == uri else wanted)


def test_earlier_snapshots_are_deleted(tmp_path):
    (tmp_path / "snapshot" / "old").mkdir(parents=True)
    snapshot.discard(tmp_path / "snapshot")
    snapshot.discard(tmp_path / "snapshot")
    assert not (tmp_path / "snapshot").exists()
