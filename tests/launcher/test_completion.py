"""Completion: through a real bash and its script, quickly, and what is offered for each kind of value."""

import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from launcher import complete
from tests.launcher.test_cli import HEAVY, ROOT

TAB = """
eval "$(_STEADYTRAIN_COMPLETE=source_bash steadytrain)"
tab() {
    COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); COMPREPLY=()
    _steadytrain_completion steadytrain
    echo "${COMPREPLY[*]}"
}
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two runs, one of them of a study, with checkpoints and a spike; configurations of all kinds."""
    files = [
        "runs/tiny/config.yaml", "runs/demo/study.yaml", "runs/demo/a-1/config.yaml", "runs/other/notes.txt",
        "runs/tiny/spikes/000123-loss_spike.npz", "mine.yaml", "configs/tiny.yaml", "configs/sites/lab.yaml",
        "configs/models/8b.yaml",
    ]  # fmt: skip
    for name in files:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    for step in (10, 200):
        (tmp_path / f"runs/tiny/checkpoints/step-{step:08d}").mkdir(parents=True)
    (tmp_path / "configs/studies").mkdir()
    (tmp_path / "configs/studies/demo.yaml").write_text("recipes: {pre-ln: a, qk-norm: b, qk-clip: c}\n")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def context(*arguments: str, **parsed: object):
    return SimpleNamespace(args=list(arguments), params=parsed)


def test_folders_of_runs_and_studies(folder: Path) -> None:
    assert complete.runs("") == complete.runs("runs/") == ["runs/demo/a-1", "runs/tiny"]
    assert complete.runs("./runs/t") == ["./runs/tiny"]
    assert complete.runs(f"{folder}/runs/t") == [f"{folder}/runs/tiny"]
    assert complete.runs("nowhere/") == []
    assert complete.runs_and_studies("runs/d") == ["runs/demo", "runs/demo/a-1"]
    assert complete.studies("") == ["runs/demo"]


def test_files(folder: Path) -> None:
    assert complete.config_files("") == ["mine.yaml", "configs/tiny.yaml", "configs/models/8b.yaml"]
    assert complete.config_files("configs/m") == ["configs/models/8b.yaml"]
    assert complete.study_files("") == ["configs/studies/demo.yaml"]
    assert complete.sites("l") == ["lab", "local"]
    assert complete.sites("m") == ["mine.yaml"]


def test_values_of_a_run_and_of_a_study(folder: Path) -> None:
    assert complete.steps(context("runs/tiny"), "") == ["200", "10"]
    assert complete.steps(context(run=Path("runs/tiny")), "1") == ["10"]
    assert complete.steps(context(), "") == []
    assert complete.spikes(context(run=Path("runs/tiny")), "0") == ["000123-loss_spike"]
    study = context("configs/studies/demo.yaml")
    assert complete.recipes(study, "pre-ln,qk") == ["pre-ln,qk-norm", "pre-ln,qk-clip"]
    assert complete.recipes(context("mine.yaml"), "") == complete.recipes(context("absent.yaml"), "") == []
    assert "h200" in complete.devices("h")


@pytest.mark.skipif(shutil.which("bash") is None, reason="no bash")
def test_bash(folder: Path) -> None:
    program = folder / "bin" / "steadytrain"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\nexec {sys.executable} -m launcher "$@"\n')
    program.chmod(0o755)
    tabs = [
        ("che", "checkpoints"),
        ("train --overw", "--overwrite"),
        ("watch ''", "runs/demo/a-1 runs/tiny"),
        ("sweep configs/studies/demo.yaml --recipes p", "pre-ln"),
        ("export runs/tiny --step ''", "200 10"),
    ]
    script = TAB + "\n".join(f"tab steadytrain {words}" for words, _ in tabs)
    path = f"{program.parent}{os.pathsep}{os.environ['PATH']}"
    environment = os.environ | {"PATH": path, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(["bash", "--norc", "-c", script], env=environment, capture_output=True, text=True)
    assert done.stdout.splitlines() == [offered for _, offered in tabs], done.stderr


def test_nothing_heavy_is_imported(folder: Path) -> None:
    script = (
        "import sys; from launcher.cli import main\n"
        f"try: main()\nexcept SystemExit: print('heavy:', [n for n in {HEAVY} if n in sys.modules])"
    )
    asked = {"_STEADYTRAIN_COMPLETE": "complete_bash", "COMP_WORDS": "steadytrain watch ", "COMP_CWORD": "2"}
    environment = {"PYTHONPATH": str(ROOT)} | asked
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True)
    assert done.stdout.splitlines() == ["runs/demo/a-1", "runs/tiny", "heavy: []"], done.stderr
