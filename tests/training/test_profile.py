"""Traces of a few steps: which steps, the files, the table, and what is refused."""

import gzip
import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from configs.errors import ConfigError
from tests.distributed import spawn
from tests.layouts import config
from tests.training.test_run import tiny
from training.profile import FOLDER, Profiler, steps_to_trace
from training.run import train


@pytest.mark.parametrize(
    ("steps", "done", "wanted", "traced"),
    [
        (100, 0, {}, [10, 11, 12]),
        (100, 40, {}, [50, 51, 52]),
        (12, 0, {}, [10, 11, 12]),
        (11, 0, {}, [9, 10, 11]),
        (2, 0, {}, [1, 2]),
        (100, 99, {}, [100]),
        (100, 100, {}, []),
        (100, 0, {"first": 1, "steps": 1}, [1]),
        (100, 20, {"first": 30}, [30, 31, 32]),
        (100, 31, {"first": 30}, [32]),
        (100, 50, {"first": 30}, []),
        (100, 0, {"enabled": False}, []),
    ],
)
def test_which_steps_are_traced(steps: int, done: int, wanted: dict, traced: list[int]) -> None:
    cfg = config(training={"steps": steps}, profile={"enabled": True} | wanted)
    assert list(steps_to_trace(cfg, done)) == traced


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        ({"first": 9}, "profile.first = 9: must be at most 8: profile.steps = 3 are traced of training.steps = 10"),
        ({"first": 1, "steps": 20}, "profile.first = 1: must be left out, with fewer profile.steps"),
    ],
)
def test_steps_beyond_the_run_are_refused(wanted: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        config(profile={"enabled": True} | wanted)
    assert config(profile=wanted).profile.enabled is False  # nothing is traced: nothing to refuse


def traced_run(cfg, where: Path) -> str:  # type: ignore[no-untyped-def]
    """What the run prints."""
    import contextlib

    with where.open("w") as out, contextlib.redirect_stdout(out):
        train(cfg)
    return where.read_text()


def test_every_rank_leaves_a_trace_and_the_first_a_table(stdlib_bytes: Path, tmp_path: Path) -> None:
    shared = ["training.steps=4", "monitoring.interval=0", "profile.enabled=true", "profile.first=2", "profile.steps=2"]
    cfg = tiny(stdlib_bytes, tmp_path, 2, *shared, "parallel.tp=2", "training.global_batch_size=4")
    first, second = spawn(2, _traced_rank, cfg, tmp_path)
    assert "aten::mm" in first and f"profile of steps 2 to 3: {cfg.run_dir / FOLDER}" in first and "perfetto" in first
    assert second == ""
    for rank in range(2):
        with gzip.open(cfg.run_dir / FOLDER / f"rank-{rank}.json.gz") as file:
            events = [event["name"] for event in json.load(file)["traceEvents"]]
        passes = events.count("aten::embedding")
        assert passes == 2, "of two steps, and of no other"


def _traced_rank(cfg, folder: Path) -> str:  # type: ignore[no-untyped-def]
    import torch.distributed as dist

    return traced_run(cfg, folder / f"out-{dist.get_rank()}")


def test_a_rollback_ends_the_trace_which_says_what_it_holds(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    cfg = config(run={"dir": tmp_path}, training={"steps": 9}, profile={"enabled": True, "first": 2, "steps": 5})
    topology = SimpleNamespace(rank=0, is_logging_rank=True, device=torch.device("cpu"))
    with Profiler(cfg, topology, done=0) as profiler:
        for step in (1, 2, 3, 2, 3, 4):
            profiler.before(step)
    assert "profile of steps 2 to 3: " in capsys.readouterr().out
