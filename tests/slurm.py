"""A real Slurm for tests: one per session, counted as skipped with the reason where there can be none.

In a test: `def test_x(slurm: Lab)`; `tests/conftest.py` has the fixtures for all folders.
"""

import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from cluster import lab as labs
from cluster import packages
from cluster.lab import UP, Lab
from configs.errors import SteadytrainError

PATIENCE_S = 30.0  # for the last processes of cancelled jobs

__all__ = ["slurm", "slurm_session", "start_or_skip", "until"]


def start_or_skip(folder: Path, *, nodes: int = 4) -> Lab:
    """A started cluster; the test is skipped where Slurm is neither installed nor can be downloaded."""
    try:
        packages.install()
    except SteadytrainError as error:
        pytest.skip(f"no Slurm: {error}")
    return labs.start(folder, nodes=nodes)


@pytest.fixture(scope="session")
def slurm_session(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    """The cluster of this session: 4 nodes of 8 CPUs and 4 fake GPUs."""
    lab = start_or_skip(tmp_path_factory.mktemp("slurm") / "lab")
    yield lab
    lab.stop()


@pytest.fixture
def slurm(slurm_session: Lab, monkeypatch: pytest.MonkeyPatch) -> Iterator[Lab]:
    """The cluster of this session in this test's environment; afterwards it has no jobs, and all nodes are back."""
    for name, value in slurm_session.environment.items():
        monkeypatch.setenv(name, value)
    yield slurm_session
    slurm_session.run("scancel", "--partition=low")
    slurm_session.run("scancel", "--partition=high")
    _tidy_up(slurm_session)


def _tidy_up(lab: Lab) -> None:
    """Wait for idle nodes; one that hangs is set down, which ends its jobs for Slurm, and its power is cut.

    Slurm may lose a node's word that a job is over when the job was cancelled while it started: the node is then
    "completing" for two minutes.
    """
    for node in lab.nodes:
        if lab.state(node) not in UP:
            lab.start_node(node)
    deadline = time.monotonic() + PATIENCE_S
    while time.monotonic() < deadline and not _all_idle(lab):
        time.sleep(0.1)
    for node in lab.nodes:
        if lab.state(node) != "idle":
            lab.fail_node(node)
            lab.kill_node(node)
            lab.start_node(node)
    until(lambda: _all_idle(lab), 60, "all nodes are idle")


def _all_idle(lab: Lab) -> bool:
    return all(lab.state(node) == "idle" for node in lab.nodes)


def until(condition: Callable[[], bool], seconds: float, what: str) -> float:
    """Wait for a condition; the seconds it took. Fails the test when it takes longer than `seconds`."""
    begin = time.monotonic()
    while not condition():
        assert time.monotonic() - begin < seconds, f"not within {seconds} s: {what}"
        time.sleep(0.05)
    return time.monotonic() - begin
