"""Real runs to export, of a few steps, and what training itself computes with their weights."""

from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from configs.schema import Config
from data.samples import Samples
from monitoring.recorder import read_summary
from parallel import topology as topologies
from tests.distributed import spawn
from tests.training.test_run import tiny
from training.build import build_trainer
from training.checkpoint.saver import Checkpoints
from training.checkpoint.weights import initial_weights
from training.run import train

LENGTH = 32
SMALL = [
    "model.hidden_size=32",
    "model.vocab_multiple=96",
    "training.steps=3",
    f"training.sequence_length={LENGTH}",
    "training.eval_samples=32",
    "monitoring.interval=0",
    "checkpoint.interval=3",
    "optimizer.lr=3e-4",
    "model.init_std=0.2",
    "model.reparam.gamma_init=sigma",
]
"""Weights so large that logits differ from token to token before anything was learned."""
LLAMA = ["model.norm=rmsnorm", "model.positions=rope", "model.activation=swiglu", "model.kv_heads=2"]
LAYOUTS = {"one": (1, []), "tp2": (2, ["parallel.tp=2"]), "tp2 pp2": (4, ["parallel.tp=2", "parallel.pp=2"])}


class Made(NamedTuple):
    """A run, and the loss it logged for its last checkpoint."""

    config: Config
    val_loss: float

    @property
    def folder(self) -> Path:
        return self.config.run_dir


def made(data: Path, runs: Path, layout: str, *overrides: str) -> Made:
    """Trained a few steps in `layout`."""
    world_size, parallel = LAYOUTS[layout]
    cfg = tiny(data, runs, world_size, *SMALL, *LLAMA, *parallel, *overrides)
    spawn(world_size, train, cfg)
    summary = read_summary(cfg.run_dir)
    assert summary is not None
    return Made(cfg, summary["val_loss"])


def tokens(cfg: Config, rows: int = 4) -> Tensor:
    """The first validation samples: (B, T)."""
    samples = Samples(cfg.data.sources, "validation", LENGTH, 0)
    return torch.stack([torch.from_numpy(samples[k]) for k in range(rows)])[:, :-1]


def ours(data: Path, runs: Path, init_from: Path | str, *overrides: str) -> Tensor:
    """Logits (B, T, V) that training's own forward pass makes on one process from `init_from`, before any step."""
    cfg = tiny(data, runs, 1, *SMALL, *LLAMA, *overrides, f"init_from={init_from}", "training.seed=5")
    (logits_BTV,) = spawn(1, _logits, cfg)
    return logits_BTV


def begun(data: Path, runs: Path, layout: str, init_from: str, *overrides: str) -> Path:
    """A run in `layout` with a checkpoint of step 0: what it holds before it has trained. Another seed: nothing is
    right unless it was loaded."""
    world_size, parallel = LAYOUTS[layout]
    shared = [*SMALL, *LLAMA, *parallel, *overrides, f"init_from={init_from}", "training.seed=5"]
    cfg = tiny(data, runs, world_size, *shared)
    spawn(world_size, _save_beginning, cfg)
    return cfg.run_dir


def _logits(cfg: Config) -> Tensor:
    topology = topologies.start(cfg.parallel, "cpu")
    samples = Samples(cfg.data.sources, "train", LENGTH, cfg.training.seed)
    trainer = build_trainer(cfg, topology, samples.vocab_size, initial_weights(cfg, topology, samples))
    with torch.no_grad():
        return trainer.chunks[0](tokens(cfg))[..., : samples.vocab_size].float()


def _save_beginning(cfg: Config) -> None:
    topology = topologies.start(cfg.parallel, "cpu")
    samples = Samples(cfg.data.sources, "train", LENGTH, cfg.training.seed)
    trainer = build_trainer(cfg, topology, samples.vocab_size, initial_weights(cfg, topology, samples))
    with Checkpoints(cfg, topology, trainer, samples.fingerprint) as checkpoints:
        checkpoints.save(0, 0.0, journal={}, stability={}, skipped=0, report=lambda *_: None)
        assert checkpoints.wait()
