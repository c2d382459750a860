"""Runs whose checkpoints are loaded: trained once for all tests, each of a few steps."""

from pathlib import Path

import pytest

from configs.schema import Config
from tests.distributed import spawn
from tests.training.test_run import tiny
from training.run import train

LLAMA = ["model.norm=rmsnorm", "model.positions=rope", "model.activation=swiglu", "model.kv_heads=2"]
PECULIAR = ["model.init_std=1", "model.reparam.head=false", "optimizer.lr=3e-3"]
"""Logits that differ much: the most probable text is not one token for ever."""
SMALL = [
    "model.hidden_size=32",
    "training.steps=6",
    "training.eval_interval=3",
    "training.eval_samples=40",
    "checkpoint.interval=3",
    "monitoring.interval=0",
]


def trained(data: Path, runs: Path, world_size: int, *overrides: str) -> Config:
    """A run with checkpoints of steps 3 and 6, evaluated at both."""
    cfg = tiny(data, runs, world_size, *SMALL, *overrides)
    spawn(world_size, train, cfg)
    return cfg


@pytest.fixture(scope="session")
def llama_run(stdlib_bytes: Path, tmp_path_factory: pytest.TempPathFactory) -> Config:
    """Llama's shape with sigmaReparam at tp 2, pp 2."""
    runs = tmp_path_factory.mktemp("runs")
    return trained(stdlib_bytes, runs, 4, *LLAMA, *PECULIAR, "parallel.tp=2", "parallel.pp=2", "run.name=llama")


@pytest.fixture(scope="session")
def learned_run(stdlib_bytes: Path, tmp_path_factory: pytest.TempPathFactory) -> Config:
    """Learned positions, LayerNorm and biases on one process."""
    runs = tmp_path_factory.mktemp("runs")
    return trained(
        stdlib_bytes,
        runs,
        1,
        "model.bias=true",
        "model.tie_embeddings=true",
        "model.reparam.head=false",
        "run.name=learned",
    )
