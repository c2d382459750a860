"""A dry run builds the rank that it says, and sees what is wrong."""

import subprocess
import sys
import time

import pytest

from configs.checks import resolve
from configs.load import load
from planning import dry_run as dry
from tests.layouts import VOCAB, config

LAYOUT = {"tp": 2, "pp": 2, "dp": 4}
BATCH = {"micro_batch_size": 1, "global_batch_size": 16}


@pytest.mark.parametrize("schedule", ["1f1b", "zbv"])
def test_a_rank_in_the_middle_is_where_the_layout_says(schedule):
    cfg = config(16, parallel=LAYOUT | {"schedule": schedule}, training=BATCH)
    run = dry.dry_run(cfg, VOCAB, 11)
    assert (run.tp_rank, run.dp_rank, run.pp_rank) == (1, 1, 1)
    assert (run.tensor_ranks, run.data_ranks, run.pipeline_ranks) == ([10, 11], [9, 11, 13, 15], [3, 11])
    assert run.layers == ([2, 3] if schedule == "1f1b" else [1, 2])
    assert sorted(run.actions) == sorted(f"{s}{k}{m}" for s in run.stages for k in kinds(run.actions) for m in range(4))


def kinds(actions):
    return {action.strip("0123456789") for action in actions}


def test_other_groups_and_other_memory_are_seen(monkeypatch):
    cfg = config(16, parallel=LAYOUT, training=BATCH)
    monkeypatch.setattr(dry.dist, "get_process_group_ranks", lambda group: [0, 1])
    with pytest.raises(dry.Mismatch, match="rank 5: tensor-parallel ranks are"):
        dry.dry_run(cfg, VOCAB, 5)
    monkeypatch.undo()
    monkeypatch.setattr(dry, "tensor_bytes", lambda tensors: 1)
    with pytest.raises(dry.Mismatch, match="take 1 bytes; the plan says"):
        dry.dry_run(cfg, VOCAB, 5)


@pytest.mark.slow
@pytest.mark.parametrize("rank", ["first", "middle", "last"])
def test_a_rank_of_70_billion_parameters_on_1024_gpus_fits_this_machine(rank):
    overrides = "training.global_batch_size=1024 training.micro_batch_size=1 parallel.tp=8 parallel.pp=8"
    started = time.monotonic()
    command = f"-m launcher plan configs/models/70b.yaml {overrides} model.reparam.kind=sigma --nodes 128"
    done = subprocess.run(
        [sys.executable, *command.split(), "--vocab-size", "128256", "--dry-run-rank", rank],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "every send has its receive" in done.stdout
    assert float(done.stdout.split(" GiB here")[0].rsplit(" ", 1)[1]) < 4
    assert time.monotonic() - started < 60


def test_the_model_on_1024_gpus_is_llama_70b():
    cfg = resolve(load("configs/models/70b.yaml", ["data.sources=[{path: none}]", "training.global_batch_size=8"]), 1)
    assert (cfg.model.layers, cfg.model.hidden_size, cfg.model.key_value_heads) == (80, 8192, 8)
