"""Python and packages against what the checkout pins, and the compilers that torch.compile needs."""

import os
import re
import shutil
import sys
import sysconfig
import tempfile
from collections.abc import Iterator, Mapping
from importlib import metadata
from pathlib import Path

from launcher.doctor.command import ask
from launcher.doctor.finding import Asked, Finding, ok, problem, warning

LOCK = Path(__file__).parents[2] / "requirements.lock"
OLDEST_PYTHON = (3, 11)
SHOWN = 4
"""Packages that are named; of more, how many."""
REINSTALL = "`make clean test` installs what requirements.lock pins"
PROGRAM = """
#include <Python.h>
#include <cmath>
#include <vector>
#include <omp.h>
int threads() { return omp_get_max_threads(); }
"""
COMPILE_SECONDS = 20.0


def check(asked: Asked) -> Iterator[Finding]:
    """Python, packages, torch's version, C++ compiler, triton."""
    yield python(sys.version_info[:3])
    yield from packages(_pinned(LOCK), _installed())
    yield compiler(os.environ.get("CXX", "g++"))
    yield triton(_installed().get("triton"))


def python(version: tuple[int, ...]) -> Finding:
    """The interpreter's version."""
    shown = ".".join(map(str, version))
    if version[:2] < OLDEST_PYTHON:
        return problem("Python", f"{shown}: too old", "use Python 3.11 or newer: make PYTHON=/path/to/python3.11")
    return ok("Python", f"{shown} ({sys.executable})")


def packages(pinned: Mapping[str, str] | None, installed: Mapping[str, str]) -> Iterator[Finding]:
    """What is installed in other versions than `pinned`; torch on its own. Both by canonical name."""
    if pinned is None:
        yield ok("packages", f"{len(installed)} installed; not compared: no requirements.lock beside the code")
        return
    missing = sorted(name for name in _required() if name not in installed)
    if missing:
        yield problem("packages", f"not installed: {', '.join(missing)}", REINSTALL)
    differ = [
        f"{name} {installed[name]} (pinned: {version})"
        for name, version in pinned.items()
        if name != "torch" and name in installed and _public(installed[name]) != _public(version)
    ]
    if differ:
        rest = f", and {len(differ) - SHOWN} more" if len(differ) > SHOWN else ""
        yield warning("packages", f"not as pinned: {', '.join(differ[:SHOWN])}{rest}", REINSTALL)
    elif not missing:
        yield ok("packages", f"{len(pinned.keys() & installed.keys())} as requirements.lock pins them")
    version, wanted = installed.get("torch"), pinned.get("torch")
    if version is not None and wanted is not None and _public(version) != _public(wanted):
        yield problem("torch version", f"{version} (pinned: {wanted})", REINSTALL)
    elif version is not None:
        yield ok("torch version", version)


def compiler(name: str) -> Finding:
    """Whether it compiles what torch.compile writes: C++ with OpenMP and Python's headers."""
    fix = "install g++ and Python's headers (Debian: g++ python3-dev), or set CXX; until then training.compile=false"
    if shutil.which(name) is None:
        return warning("C++ compiler", f"there is no {name}: training.compile does not work", fix)
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "probe.cpp"
        source.write_text(PROGRAM)
        headers = sysconfig.get_paths()["include"]
        command = [name, "-shared", "-fPIC", "-fopenmp", f"-I{headers}", str(source), "-o", f"{folder}/probe.so"]
        answer = ask(command, COMPILE_SECONDS)
    if answer.state == "answered":
        return ok("C++ compiler", f"{name} compiles with OpenMP and Python's headers")
    return warning("C++ compiler", f"{name} does not compile: {answer.said.rpartition('`: ')[2]}", fix)


def triton(version: str | None) -> Finding:
    """Only GPUs need it, and torch's CUDA build brings it; whether the two are there, `devices` says."""
    return ok("triton", version or "not installed: needed on GPUs only")


def _pinned(lock: Path) -> dict[str, str] | None:
    if not lock.is_file():
        return None
    pairs = re.findall(r"^([A-Za-z0-9._-]+)==(\S+)$", lock.read_text("utf-8"), re.MULTILINE)
    return {_canonical(name): version for name, version in pairs}


def _installed() -> dict[str, str]:
    found: dict[str, str] = {}
    for distribution in metadata.distributions():
        name = distribution.metadata["Name"]
        if name:  # a half removed one has none
            found.setdefault(_canonical(name), distribution.version)  # the first on the path is the one imported
    return found


def _required() -> list[str]:
    """What this package needs, without its extras; nothing where it is not installed itself."""
    try:
        lines = metadata.requires("steadytrain") or []
    except metadata.PackageNotFoundError:
        return []
    return [_canonical(re.split(r"[^A-Za-z0-9._-]", line, maxsplit=1)[0]) for line in lines if "extra ==" not in line]


def _canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def _public(version: str) -> str:
    """Without the build: `2.13.0+cpu` is 2.13.0."""
    return version.partition("+")[0]
