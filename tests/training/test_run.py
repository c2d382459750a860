"""The whole loop on real bytes: the record it leaves, collapse and cure, divergence, equality across layouts."""

import json
import math
from pathlib import Path

import numpy as np
import pytest

from configs.checks import resolve
from configs.load import load
from configs.schema import Config
from monitoring.recorder import read_events, read_metrics, without_times
from tests.distributed import spawn
from training.run import train

TINY = Path(__file__).parents[2] / "configs" / "tiny.yaml"


def tiny(data: Path, runs: Path, world_size: int, *overrides: str) -> Config:
    fixed = [f"data.sources.0.path={data}", f"run.dir={runs}", "tracking.kind=none", "monitoring.pictures=false"]
    return resolve(load(TINY, [*fixed, *overrides]), world_size)


def test_the_record_of_a_run(stdlib_bytes: Path, tmp_path: Path) -> None:
    cfg = tiny(stdlib_bytes, tmp_path, 1, "training.eval_interval=10", "training.eval_samples=16")
    (summary,) = spawn(1, train, cfg)
    lines = read_metrics(cfg.run_dir)
    assert [line["step"] for line in lines] == list(range(1, 21))
    assert [line["tokens"] for line in lines] == [1024 * step for step in range(1, 21)]
    assert [line["step"] for line in lines if "entropy_mean" in line] == [1, 5, 10, 15, 20]
    assert [line["step"] for line in lines if "val_loss" in line] == [10, 20]
    assert lines[0]["loss"] == summary.initial_loss == pytest.approx(math.log(257), rel=0.05)
    assert lines[-1]["loss"] < lines[0]["loss"] - 1
    assert lines[-1]["val_loss"] == summary.val_loss
    assert 50e6 < summary.peak_memory_bytes < 20e9  # torch alone takes more than the former
    assert json.loads((cfg.run_dir / "summary.json").read_text())["status"] == summary.status == "finished"
    with np.load(cfg.run_dir / "signals" / "step-00000020.npz") as arrays:
        assert arrays["entropy"].shape == arrays["max_logit"].shape == (4, 4)
        assert arrays["sigma"].shape == arrays["gamma"].shape == arrays["matrix"].shape == (4 * 6 + 1,)
        assert lines[-1]["entropy_mean"] == pytest.approx(arrays["entropy"].mean(), rel=1e-6)


@pytest.mark.parametrize("seed", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_pre_ln_collapses_within_80_steps_and_sigma_reparam_does_not(
    stdlib_bytes: Path, tmp_path: Path, seed: int
) -> None:
    shared = ["training.steps=80", "monitoring.interval=80", "training.eval_samples=16", f"training.seed={seed}"]
    baseline = tiny(stdlib_bytes, tmp_path / "a", 1, *shared, "model.reparam.kind=none")
    cured = tiny(stdlib_bytes, tmp_path / "b", 1, *shared)
    (collapsed,), (healthy,) = spawn(1, train, baseline), spawn(1, train, cured)
    assert collapsed.entropy_mean < 1.6 and collapsed.max_logit > 150
    assert healthy.entropy_mean > 2.6 and healthy.max_logit < 30


@pytest.mark.parametrize(
    "layout",
    [
        ["parallel.tp=2", "parallel.pp=2"],
        ["parallel.pp=2", "parallel.schedule=zbv", "parallel.dp=2", "parallel.zero_stage=2"],
        ["parallel.tp=2", "parallel.dp=2", "parallel.sequence_parallel=true", "training.recompute=full"],
    ],
    ids=" ".join,
)
def test_every_layout_writes_the_same_record(stdlib_bytes: Path, tmp_path: Path, layout: list[str]) -> None:
    shared = ["training.steps=10", "optimizer.lr=1e-3", "training.eval_interval=5", "training.eval_samples=32"]
    dense = tiny(stdlib_bytes, tmp_path / "dense", 1, *shared)
    split = tiny(stdlib_bytes, tmp_path / "split", 4, *shared, *layout)
    spawn(1, train, dense)
    summaries = spawn(4, train, split)
    assert len({summary.val_loss for summary in summaries}) == 1  # every rank knows it, not the last stage alone
    assert len({summary.peak_memory_bytes for summary in summaries}) == 1
    for ours, theirs in zip(read_metrics(split.run_dir), read_metrics(dense.run_dir), strict=True):
        assert ours.keys() == theirs.keys()
        for key in without_times(theirs):
            assert ours[key] == pytest.approx(theirs[key], rel=2e-5), (ours["step"], key)


def test_a_run_that_blows_up_stops_and_says_so(stdlib_bytes: Path, tmp_path: Path) -> None:
    explosive = ["model.norm=none", "model.reparam.kind=none", "optimizer.lr=1e18", "optimizer.clip=0"]
    cfg = tiny(stdlib_bytes, tmp_path, 1, *explosive)
    (summary,) = spawn(1, train, cfg)
    assert summary.status == "diverged" and summary.steps < 20
    alarm, record, event = read_events(cfg.run_dir)
    assert alarm["kind"] == "alarm" and alarm["detector"] == "non_finite" and record["kind"] == "spike_record"
    assert event["kind"] == "diverged" and event["step"] == summary.steps and "not finite" in event["reason"]
