"""The command line: help that answers at once, exit codes, and what each command is called with."""

import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from typer.testing import CliRunner

from comparison.selection import Selection
from configs.errors import DataError, LaunchError
from launcher.cli import COMMANDS, app
from launcher.outcome import Outcome

HEAVY = ("torch", "mlflow", "sentencepiece", "matplotlib", "megatron", "deepspeed", "numpy", "submitit")
ROOT = Path(__file__).parents[2]


def run(*arguments: str):
    return CliRunner().invoke(app, list(arguments))


@pytest.mark.parametrize(
    "arguments",
    [
        ["--help"],
        ["prepare", "--help"],
        ["train", "--help"],
        ["submit", "--help"],
        ["sweep", "--help"],
        ["compare", "--help"],
        ["checkpoints", "--help"],
        ["train", "x"],
        ["submit", "x"],
        ["checkpoints", "x"],
    ],
    ids=" ".join,
)
def test_help_and_mistakes_import_nothing_heavy(arguments, tmp_path):
    script = (
        "import sys; from launcher.cli import app\n"
        f"try: app({arguments!r})\n"
        f"except SystemExit: print('heavy:', [name for name in {HEAVY} if name in sys.modules])"
    )
    result = subprocess.run(
        [sys.executable, "-c", script], cwd=tmp_path, env={"PYTHONPATH": str(ROOT)}, capture_output=True, text=True
    )
    assert result.stdout.endswith("heavy: []\n"), result


@pytest.mark.parametrize("command", [command.__name__.removesuffix("_") for command in COMMANDS])
def test_help_has_examples_and_exit_codes(command):
    result = run(command, "--help")
    assert result.exit_code == 0
    assert f"\n  Examples:\n    steadytrain {command}" in result.output
    assert re.search(r"\n  Exit codes: 0 .*[^,]\b2 ", result.output, re.DOTALL)
    assert result.output.rstrip().endswith("docs/exit-codes.md")
    assert all(len(line) <= 100 for line in result.output.splitlines())


def test_the_version_is_the_distribution_s(monkeypatch):
    monkeypatch.setattr("launcher.cli.version", {"steadytrain": "1.2.3"}.__getitem__)
    assert run("--version").output == "steadytrain 1.2.3\n"


def test_python_m_launcher_is_the_command(tmp_path):
    command = [sys.executable, "-m", "launcher", "--help"]
    result = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env={"PYTHONPATH": str(ROOT)})
    assert "Usage: steadytrain [OPTIONS] COMMAND" in result.stdout


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (DataError("x: damaged"), 2, "x: damaged\n"),
        (LaunchError("rank 1 failed"), 1, "rank 1 failed\n"),
        (KeyboardInterrupt(), 130, "interrupted\n"),
    ],
)
def test_errors_for_users_are_a_message_and_a_code(monkeypatch, error, code, message):
    def fail(*_, **__):
        raise error

    monkeypatch.setattr("launcher.train.train", fail)
    result = run("train", "c.yaml")
    assert (result.exit_code, result.stdout, result.stderr) == (code, "", message)


def test_a_bug_keeps_its_traceback(monkeypatch):
    def fail(*_, **__):
        raise ZeroDivisionError

    monkeypatch.setattr("launcher.train.train", fail)
    result = run("train", "c.yaml")
    assert result.exit_code == 1
    assert isinstance(result.exception, ZeroDivisionError)


@pytest.mark.parametrize(
    ("outcome", "code", "output"),
    [
        (Outcome("finished", 2.34567, "runs/x"), 0, "runs/x: finished, validation loss 2.3457\n"),
        (Outcome("diverged", None, "runs/x"), 3, "runs/x: diverged\n"),
        (None, 0, ""),
    ],
)
def test_train_reports_how_the_run_ended(monkeypatch, outcome, code, output):
    calls = []
    monkeypatch.setattr("launcher.train.train", lambda *args, **kwargs: calls.append((args, kwargs)) or outcome)
    result = run("train", "c.yaml", "a.b=c", "--nproc", "2", "d.e=-1", "--overwrite")
    assert calls == [((Path("c.yaml"), ["a.b=c", "d.e=-1"]), {"nproc": 2, "overwrite": True, "fresh": False})]
    assert (result.exit_code, result.output) == (code, output)
    run("train", "c.yaml", "--fresh")
    assert calls[1][1] == {"nproc": None, "overwrite": False, "fresh": True}


def test_prepare_passes_its_options_on(monkeypatch):
    calls = {}
    prepared = SimpleNamespace(
        train_tokens=1000,
        train_documents=9,
        validation_tokens=100,
        validation_documents=1,
        vocab_size=257,
        reused=False,
    )

    def prepare(inputs, out, **options):
        calls.update(options, inputs=inputs, out=out)
        return prepared

    monkeypatch.setattr("data.prepare.prepare", prepare)
    result = run(
        "prepare", "stdlib", "books", "--out", "d", "--tokenizer", "bpe", "--vocab-size", "500", "--workers", "2"
    )
    assert result.output == ("d: 1,000 training tokens in 9 documents, 100 validation tokens in 1, vocabulary 257\n")
    assert calls == {
        "inputs": ["stdlib", "books"],
        "out": Path("d"),
        "tokenizer": "bpe",
        "eod": None,
        "vocab_size": 500,
        "validation_fraction": 0.1,
        "max_bytes": None,
        "workers": 2,
        "text_field": "text",
        "seed": 0,
        "force": False,
    }


def test_prepare_verifies_a_dataset(monkeypatch):
    split = SimpleNamespace(tokens=5)
    manifest = SimpleNamespace(train=split, validation=split, fingerprint="abc")
    monkeypatch.setattr("data.dataset.verify", lambda folder: manifest)
    assert run("prepare", "--check", "d").output == "d: complete and undamaged, 10 tokens, fingerprint abc\n"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "command line: INPUT: must name a folder, a glob, a .jsonl file or stdlib\n"),
        (["stdlib"], "command line: --out: must be set, for example --out runs/data/stdlib-bytes\n"),
        (["stdlib", "--check", "d"], "command line: --check verifies a dataset and takes neither INPUT nor --out\n"),
        (["no-such-folder", "--out", "d"], "no-such-folder: "),
    ],
)
def test_mistakes_of_prepare_are_one_line(arguments, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = run("prepare", *arguments)
    assert result.exit_code == 2
    assert message in result.stderr
    assert len(result.stderr.splitlines()) == 1


def test_sweep_and_compare_pass_their_arguments_on(monkeypatch):
    calls = []

    def sweep(path, overrides, *, jobs, only):
        calls.append((path, overrides, jobs, only))
        return Path("runs/demo")

    monkeypatch.setattr("comparison.sweep.sweep", sweep)
    monkeypatch.setattr("comparison.plan.require_data", lambda *arguments: calls.append("data"))
    monkeypatch.setattr("comparison.analysis.analyse", lambda folder: folder)
    monkeypatch.setattr("comparison.report.write", lambda folder: folder / "report.html")
    result = run("sweep", "s.yaml", "--jobs", "2", "training.steps=5", "--recipes", "a,b", "--seeds", "0")
    assert calls == ["data", (Path("s.yaml"), ["training.steps=5"], 2, Selection(recipes="a,b", seeds="0"))]
    ended = "runs/demo: this part of the study is finished"
    assert result.output == f"{ended}; its table and report: steadytrain compare runs/demo\n"
    monkeypatch.setattr("comparison.table.table", lambda folder: f"table of {folder}")
    assert run("compare", "runs/demo").output == "table of runs/demo\nreport: runs/demo/report.html\n"


def test_tokens_that_are_there_take_no_option_of_text():
    linked = ["prepare", "--megatron-train", "a", "--megatron-validation", "b", "--out", "c"]
    result = run(*linked, "--max-bytes", "9")
    assert result.exit_code == 2
    line = "command line: --max-bytes: must be left out: --megatron-train takes tokens as they are\n"
    assert result.output == line
