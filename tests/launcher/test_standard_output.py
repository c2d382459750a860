"""Standard output that is full, without Unicode, or closed by its reader."""

import os
import subprocess
import sys

PROGRAM = r"""
import typer
from configs.commands import Commands
from launcher.standard_output import echo

app = typer.Typer(cls=Commands, pretty_exceptions_enable=False)

@app.command()
def one() -> None:
    echo("caf\u00e9 \u65e5\n")

@app.command()
def other() -> None:
    pass

app()
"""


def run(stdout: int, encoding: str = "utf-8") -> subprocess.CompletedProcess[bytes]:
    environment = os.environ | {"PYTHONIOENCODING": encoding}
    return subprocess.run(
        [sys.executable, "-c", PROGRAM, "one"], stdout=stdout, stderr=subprocess.PIPE, env=environment, timeout=60
    )


def test_a_full_disk_is_one_line() -> None:
    full = os.open("/dev/full", os.O_WRONLY)
    done = run(full)
    os.close(full)
    message = b"standard output: cannot be written: No space left on device\n"
    assert (done.returncode, done.stderr) == (2, message)


def test_characters_that_it_cannot_show() -> None:
    done = run(subprocess.PIPE, "latin-1")
    assert (done.returncode, done.stdout, done.stderr) == (0, "café ?\n".encode("latin-1"), b"")


def test_a_closed_pipe_is_quiet() -> None:
    reading, writing = os.pipe()
    os.close(reading)
    done = run(writing)
    os.close(writing)
    assert (done.returncode, done.stderr) == (1, b"")
