"""SAM and QK-Clip through the real loop: in the record, resumed to the bit, and no clipping by an update left out."""

from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest

import stability.watch
from configs.schema import Config
from monitoring.recorder import read_metrics
from stability.guard import Guard, Judgement
from tests.distributed import spawn
from tests.training.checkpoint.test_saver import SHORT, TP2_PP2, assert_same_bits, assert_same_lines, trained
from tests.training.test_run import tiny
from training.checkpoint import store
from training.journal import Summary
from training.run import train

BOTH = ["optimizer.sam_rho=0.05", "optimizer.qk_clip=0.5", "optimizer.lr=1e-2"]
CASES: dict[str, tuple[int, list[str]]] = {
    "one process": (1, BOTH),
    "tp2 pp2, SAM": (4, [*TP2_PP2, BOTH[0]]),
    "tp2 pp2, QK-Clip": (4, [*TP2_PP2, *BOTH[1:]]),
    "tp2 pp2, both, pre-LN": (4, [*TP2_PP2, *BOTH, "model.reparam.kind=none"]),
    "tp2 dp2, both, bf16": (4, ["parallel.tp=2", "parallel.zero_stage=2", "training.precision=bf16", *BOTH]),
}


@pytest.mark.parametrize("name", [pytest.param(n, marks=[] if n == "one process" else pytest.mark.slow) for n in CASES])
def test_resumed_equals_never_stopped_and_the_record_has_them(stdlib_bytes: Path, tmp_path: Path, name: str) -> None:
    world_size, overrides = CASES[name]
    shared = [*SHORT, "checkpoint.interval=2", *overrides]  # the stopped run's last step is measured in both
    through = tiny(stdlib_bytes, tmp_path / "through", world_size, *shared, "training.steps=5")
    first = tiny(stdlib_bytes, tmp_path / "stopped", world_size, *shared, "training.steps=2")
    second = tiny(stdlib_bytes, tmp_path / "stopped", world_size, *shared, "training.steps=5")
    for cfg in (through, first, second):
        trained(world_size, cfg)
    assert_same_lines(second, through)
    assert_same_bits(second, through)
    assert_recorded(through)


def assert_recorded(cfg: Config) -> None:
    lines = read_metrics(cfg.run_dir)
    assert all(("sharpness" in line) is (cfg.optimizer.sam_rho > 0) for line in lines)
    assert all(("qk_clipped" in line) is (cfg.optimizer.qk_clip > 0) for line in lines)
    if cfg.optimizer.sam_rho:
        assert any(abs(line["sharpness"]) > 1e-3 for line in lines)
    if cfg.optimizer.qk_clip:
        assert any(line["qk_clipped"] for line in lines)
        measured = [line for line in lines if "max_logit" in line]
        assert all((line["max_logit"] > cfg.optimizer.qk_clip) is (line["qk_clipped"] > 0) for line in measured)


class SkipsTheThird(Guard):
    """A guard that leaves out the third update it is asked for."""

    asked = 0

    def judge(self, *args: Any) -> Judgement:
        self.asked += 1
        return replace(super().judge(*args), keep=self.asked != 3)


def skipping(cfg: Config) -> Summary:
    with patch.object(stability.watch, "Guard", SkipsTheThird):
        return train(cfg)


def test_an_update_that_is_left_out_clips_nothing(stdlib_bytes: Path, tmp_path: Path) -> None:
    fields = ["training.steps=3", "checkpoint.interval=1", "optimizer.qk_clip=0.01", "model.reparam.kind=none"]
    cfg = tiny(stdlib_bytes, tmp_path, 1, *fields, "monitoring.interval=0")
    spawn(1, skipping, cfg)
    assert all(line["qk_clipped"] > 0 for line in read_metrics(cfg.run_dir))
    after, before, earlier = store.steps(cfg.run_dir / "checkpoints")
    sums = [[file.sha256 for file in store.read_manifest(folder).files.values()] for folder in (after, before, earlier)]
    assert sums[0] == sums[1] != sums[2]
