"""Every command that is documented exists; those of README, tutorial and some other pages are run as printed."""

import ast
import contextlib
import importlib.util
import json
import os
import re
import signal
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import cast

import pytest
import typer
from typer.core import TyperGroup

from comparison.study import load_study
from configs import describe
from configs.load import load
from launcher.cli import app
from tests.docs import documents
from tests.docs.documents import ROOT, Block, says

GROUP = cast(TyperGroup, typer.main.get_command(app))  # with the options of completion
PAGES = [pytest.param(page, id=page.relative_to(ROOT).as_posix()) for page in documents.pages()]
OVERRIDE = re.compile(r"[a-z_]+(\.[a-z_0-9]+)*=.*", re.S)
MINUTES = 60.0
RUN = ["README.md", "docs/tutorial.md", "docs/laptop-to-slurm.md", "docs/generation.md"]
"""Pages whose `sh` blocks are run."""
NOT_RUN = {"make test": "it is what runs this test", "make install": "it would build .venv again, from the network"}
"""Commands that the run of a page leaves out, and why."""
UNDER_WAY = ("pending", "starting", "running", "ending", "requeued")


@pytest.mark.parametrize("page", PAGES)
def test_commands_exist_with_their_options_and_keys(page: Path) -> None:
    for command in documents.commands(page):
        _check(command)
    for command in documents.inline_commands(page):
        _check_names(command)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ("steadytrain trian configs/tiny.yaml", "no such command"),
        ("steadytrain train configs/tiny.yaml --layers 4", "No such option"),
        ("steadytrain train configs/tiny.yaml model.layerz=4", "did you mean model.layers"),
        ("steadytrain train configs/tiny.yaml parallel.tp=3", "must divide model.heads"),
        ("steadytrain train configs/none.yaml", "is not there"),
        ("steadytrain status [RUN] [--jason]", "has "),
        ("python -m benchmarks.none", "no such module"),
        ("python -m benchmarks.faults --sick 12", "no option --sick"),
        ("make coffee", "the Makefile has"),
    ],
)
def test_a_wrong_command_is_seen(wrong: str, message: str) -> None:
    with pytest.raises(Exception, match=message):
        _check(wrong)


def test_printed_lines_are_compared_by_their_words() -> None:
    assert says("runs/a: finished, validation loss 2.86\n", "runs/a: finished, validation loss 2.9441")
    assert says("layer 0  ▁▂▃▁      13% ▅▂▁▁   14  1.4k", "layer 0  ▁▁▁▁  1% ▅▂▁▁▁▁ 14 1.4k")
    assert not says("runs/a: diverged at step 3", "runs/a: finished, validation loss 2.9441")


def _check(command: str) -> None:
    """A command's program, options, configuration file and keys are there. Raises what the program says otherwise."""
    parts = documents.words(command)
    if re.search(r"\[-", command):  # a synopsis
        _check_names(command)
    elif parts[0] == "steadytrain":
        _check_ours(parts[1:])
    elif parts[0] == "torchrun":
        _check_ours(parts[parts.index("launcher") + 1 :])
    elif parts[0] == "python" and "-m" in parts:
        _check_module(parts[parts.index("-m") + 1], parts[parts.index("-m") + 2 :])
    elif parts[0] == "make":
        targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.M)
        assert set(parts[1:]) <= set(targets), f"{command}: the Makefile has {targets}"


def _check_ours(arguments: list[str]) -> None:
    name, *rest = arguments
    if name.startswith("-"):
        assert name in {option for parameter in GROUP.params for option in parameter.opts}, name
        return
    assert name in GROUP.commands, f"steadytrain {name}: no such command"
    GROUP.commands[name].make_context(name, list(rest))  # raises for an option or argument that it has not
    overrides = [word for word in rest if OVERRIDE.fullmatch(word)]
    for word in overrides:
        key = word.partition("=")[0]
        assert describe.find(key) is not None, f"{key}: {describe.no_such_key(key)}"
    for word in rest:
        if word.startswith("configs/") and word.endswith(".yaml"):
            _check_file(name, ROOT / word, overrides)


def _check_file(command: str, path: Path, overrides: list[str]) -> None:
    """A configuration of ours with the overrides of a command; what is missing is data only."""
    assert path.is_file(), f"{path} is not there"
    if path.parent.name == "sites":
        return
    if command == "sweep":
        load_study(path, overrides)
    elif path.parent.name not in ("models", "recipes"):  # parts of a configuration
        load(path, overrides)


def _check_names(command: str) -> None:
    """A command that is printed in part, or as a synopsis: its name and options are there."""
    parts = command.split("#")[0].split()
    name = parts[1]
    assert name in GROUP.commands, f"{command}: no such command"
    known = {option for parameter in GROUP.commands[name].params for option in parameter.opts} | {"--help"}
    assert set(re.findall(r"(?<![\w-])--[a-z-]+", command.split("#")[0])) <= known, f"{command}: has {sorted(known)}"


def _check_module(module: str, arguments: list[str]) -> None:
    """`python -m module --option`: the module is there, and its code names the option."""
    if module == "launcher":
        _check_ours(arguments)
        return
    found = importlib.util.find_spec(module)
    assert found is not None and found.origin is not None, f"python -m {module}: no such module"
    origin = Path(found.origin)
    sources = sorted(origin.parent.glob("*.py")) if origin.name == "__init__.py" else [origin]
    text = "\n".join(source.read_text(encoding="utf-8") for source in sources)
    names = {node.arg for node in ast.walk(ast.parse(text)) if isinstance(node, ast.arg)}
    for word in arguments:
        if word.startswith("--"):
            option = word.split("=")[0]
            assert f'"{option}"' in text or option[2:].replace("-", "_") in names, f"{module}: no option {option}"


@pytest.mark.slow
@pytest.mark.timeout(40 * MINUTES)
@pytest.mark.parametrize("name", RUN)
def test_a_page_runs_as_printed(name: str, tmp_path: Path) -> None:
    """Each `sh` block in its order; a `text` block after it has lines of what it printed; titled blocks are files."""
    folder = documents.workplace(tmp_path)
    output = ""
    for block in documents.blocks(ROOT / name):
        if block.title is not None:
            (folder / block.title).write_text(block.text, encoding="utf-8")
        elif block.language == "sh":
            output = _run(block, folder)
        elif block.language == "text":
            for line in block.text.splitlines():
                assert says(output, line), f"{name} prints\n{line}\nand this came:\n{output}"


def _run(block: Block, folder: Path) -> str:
    environment = os.environ | {
        "PATH": f"{ROOT / '.venv/bin'}:{os.environ['PATH']}",
        "OMP_NUM_THREADS": "1",
        "MLFLOW_PORT": str(_free_port()),
        "COLUMNS": "120",
    }
    output = ""
    for command in block.commands():
        plain = " ".join(documents.words(command))
        if plain in NOT_RUN:
            continue
        if "mlflow ui" in command:
            _serve(command, folder, environment)
            continue
        if plain.startswith("make "):  # the checkout's installation is as it is
            command = command.replace("make ", "make -o .venv/.installed ", 1)
        output += documents.run(command, folder, environment, timeout=20 * MINUTES)
        if "steadytrain submit" in command and "--dry-run" not in command:
            _wait_for_jobs(folder, environment)
    return output


def _serve(command: str, folder: Path, environment: dict[str, str]) -> None:
    """Start the server, get its page, and end it as Ctrl-C does."""
    with _started(command, folder, environment) as server:
        address = f"http://127.0.0.1:{environment['MLFLOW_PORT']}/"
        deadline = time.monotonic() + 3 * MINUTES
        while True:
            assert server.poll() is None and time.monotonic() < deadline, f"{command}: did not answer at {address}"
            with contextlib.suppress(urllib.error.URLError, ConnectionError):
                assert b"MLflow" in urllib.request.urlopen(address, timeout=10).read()
                return


@contextlib.contextmanager
def _started(command: str, folder: Path, environment: dict[str, str]) -> Iterator[subprocess.Popen[bytes]]:
    server = subprocess.Popen(
        ["bash", "-c", f"exec {command}"], cwd=folder, env=environment, start_new_session=True,
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        yield server
    finally:
        os.killpg(server.pid, signal.SIGTERM)
        server.wait(timeout=60)


def _wait_for_jobs(folder: Path, environment: dict[str, str]) -> None:
    """Until no job of the folder is queued or running."""
    deadline = time.monotonic() + 10 * MINUTES
    while any(run["state"] in UNDER_WAY for run in _runs(folder, environment)):
        assert time.monotonic() < deadline, "a job did not end"


def _runs(folder: Path, environment: dict[str, str]) -> list[dict[str, str]]:
    found: list[dict[str, str]] = json.loads(documents.run("steadytrain status --json", folder, environment, 60))
    return found


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
