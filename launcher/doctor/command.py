"""A program asked with a time limit: what it said, or that it is absent, fails or hangs."""

import os
import shutil
import signal
import subprocess
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Answer:
    """How a program answered. `said`: its stdout where it answered, else its complaint on one line."""

    state: Literal["answered", "absent", "failed", "hung"]
    said: str
    output: str = ""
    """All that it printed before it failed."""


def ask(command: Sequence[str], seconds: float, environment: Mapping[str, str] | None = None) -> Answer:
    """Run a program to its end, for `seconds` at most; then it is killed with what it has started."""
    if shutil.which(command[0]) is None:
        return Answer("absent", f"there is no {command[0]}")
    try:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            encoding="utf-8",
            errors="replace",
            env=environment,
            start_new_session=True,
        )
    except OSError as error:  # not a program of this machine, or not ours to run
        return Answer("failed", f"{command[0]}: {error.strerror}")
    try:
        stdout, stderr = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
        return Answer("hung", f"`{' '.join(command)}`: no answer within {seconds:.0f} s")
    if process.returncode:
        words = (stderr.strip() or stdout.strip()).splitlines() or [f"exit code {process.returncode}"]
        return Answer("failed", f"`{' '.join(command)}`: {words[-1].strip()}", stdout + stderr)
    return Answer("answered", stdout)
