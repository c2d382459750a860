"""QK-Clip in every layout against its definition; what it costs; and what it leaves alone."""

from collections import Counter
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager

import pytest
import torch

from configs.schema import Config
from monitoring.signals import Monitor
from parallel import topology as topologies
from parallel.gradients import sum_partial_gradients
from tests.distributed import spawn
from tests.layouts import (
    VOCAB,
    RandomSamples,
    config,
    dense_batches,
    dense_decoder,
    judged_update,
    train_layout,
)
from tests.monitoring.test_signals import Log
from tests.reference_training import train_dense
from tests.training.test_dense_reference import SIGMA, ZBV, assert_equal
from tests.training.test_sam import layouts
from training.batches import Batches
from training.build import build_trainer
from training.qk_clip import QkClip
from training.reductions import loss_and_requests
from training.sam import Ascent

OPTIMIZER = {"lr": 1e-3, "eps": 1e-3, "clip": 0.5, "weight_decay": 0.1}
LARGE = {"init_std": 0.2}
"""Initial weights that give logits from 2 to 200."""
THRESHOLD = {"none": 2.0, "sigma": 0.5}
"""Such that most heads are clipped at first, some later, and some never again."""
GQA = {"kv_heads": 2, "positions": "rope"}
QK_V = {"reparam": {"kind": "sigma", "qkv": "qk+v"}}
LOW_RANK = {"low_rank": {"targets": ["k"], "rank": 4}}

# name: (processes, model, parallel, training)
LAYOUTS = {
    "dp2 ZeRO-1": (2, LARGE, {"zero_stage": 1}, {"micro_batch_size": 2}),
    "tp2, qk+v": (2, QK_V, {"tp": 2}, {}),
    "one process, recompute": (1, LARGE, {}, {"recompute": "full"}),
    "tp2, grouped queries": (2, LARGE | GQA, {"tp": 2}, {}),
    "tp2, low-rank keys": (2, LARGE | LOW_RANK, {"tp": 2}, {}),
    "tp2, low-rank keys, sigma": (2, SIGMA | LOW_RANK, {"tp": 2}, {}),
    "tp2 pp2": (4, LARGE, {"tp": 2, "pp": 2}, {}),
    "tp2 pp2, sigma": (4, SIGMA, {"tp": 2, "pp": 2}, {"micro_batch_size": 2}),
    "tp2 dp2 ZeRO-2, sigma, sequence parallel": (
        4,
        SIGMA | GQA,
        {"tp": 2, "zero_stage": 2, "sequence_parallel": True},
        {"recompute": "full", "micro_batch_size": 1},
    ),
    "tp2 pp2 dp2 zbv ZeRO-2": (8, LARGE | GQA, {"tp": 2, "pp": 2, "zero_stage": 2} | ZBV, {"micro_batch_size": 1}),
}
QUICK = ["dp2 ZeRO-1", "tp2, qk+v"]


def clipping(world_size: int, model: dict, parallel: dict, training: dict, **optimizer: object) -> Config:
    threshold = THRESHOLD[model.get("reparam", {}).get("kind", "none")]
    fields = OPTIMIZER | {"qk_clip": threshold} | optimizer
    return config(world_size, model=model, parallel=parallel, training=training, optimizer=fields)


@pytest.mark.parametrize("name", layouts(LAYOUTS, QUICK))
def test_every_layout_equals_the_definition(name: str) -> None:
    world_size, model, parallel, training = LAYOUTS[name]
    assert_layout_equals_dense(world_size, model, parallel, training)


@pytest.mark.slow
def test_with_sam_the_logits_are_those_at_w() -> None:
    assert_layout_equals_dense(4, LARGE, {"tp": 2, "pp": 2}, {}, sam_rho=0.05)


@pytest.mark.slow
def test_with_muon_the_fragments_of_all_ranks_are_clipped() -> None:
    assert_layout_equals_dense(4, LARGE, {"tp": 2, "zero_stage": 2}, {}, name="muon")


def assert_layout_equals_dense(
    world_size: int, model: dict, parallel: dict, training: dict, **optimizer: object
) -> None:
    dense_cfg = clipping(1, model, {}, {}, **optimizer)
    expected = train_dense(dense_decoder(dense_cfg), dense_batches(dense_cfg, 5))
    actual = spawn(world_size, train_layout, clipping(world_size, model, parallel, training, **optimizer), 5)[0]
    assert_equal(actual, expected, rtol=1e-5)
    clipped = [more["qk_clipped"] for more in expected.more]
    assert [more["qk_clipped"] for more in actual.more] == clipped
    assert clipped[0] >= 4 and sum(0 < count < 16 for count in clipped), clipped


class Step:
    """One rank that trains as the loop does, with or without the lines that SAM and QK-Clip have in it."""

    def __init__(self, cfg: Config, *, lines: bool) -> None:
        self.cfg, self.topology = cfg, topologies.start(cfg.parallel, "cpu")
        self.trainer = build_trainer(cfg, self.topology, VOCAB)
        self.batches = Batches(RandomSamples(16), 8, self.topology)
        self.ascent = Ascent(cfg.optimizer.sam_rho, self.trainer, self.topology) if lines else None
        self.qk_clip = QkClip(cfg.optimizer.qk_clip, self.trainer, self.topology) if lines else None

    def run(self, step: int) -> dict[str, torch.Tensor]:
        trainer, topology, more = self.trainer, self.topology, {}
        tokens_BT, targets_BT = self.batches.step(step)
        with trainer.engine.accumulate():
            with self.qk_clip.watching() if self.qk_clip else nothing():
                loss = trainer.pipeline.train(tokens_BT, targets_BT)
            sum_partial_gradients(trainer.parameters(), topology.tensor)
            trainer.spectral.pull_back()
            if self.ascent:
                more |= self.ascent.take_gradients(tokens_BT, targets_BT, loss)
        if self.qk_clip:
            more |= self.qk_clip.measure()
        totals = loss_and_requests(loss, trainer.pipeline, topology, stop_requested=False, more=more.values())
        judged_update(trainer, self.cfg, totals)
        if self.qk_clip:
            self.qk_clip.clip()
        trainer.spectral.refresh()
        return more


@contextmanager
def nothing() -> Iterator[None]:
    yield


def operations(cfg: Config, lines: bool) -> list[str]:
    step = Step(cfg, lines=lines)
    step.run(0)
    with Log() as log:
        step.run(1)
    return log.operations


COSTS: dict[str, dict] = {"tp2, sigma": {"tp": 2}, "dp2": {}}


@pytest.mark.parametrize("name", layouts(COSTS, ["tp2, sigma"]))
def test_off_nothing_more_runs_and_on_one_collective_and_no_copy_to_the_host(name: str) -> None:
    """The largest logits: over data-parallel ranks, or with sigmaReparam over tensor-parallel ones, of all layers."""
    model, parallel = SIGMA if "sigma" in name else LARGE, COSTS[name]
    off, on = (config(2, model=model, parallel=parallel, optimizer={"qk_clip": tau}) for tau in (0.0, 1.0))
    ran = [spawn(2, operations, cfg, lines) for cfg, lines in ((off, False), (off, True), (on, True))]
    for bare, with_off, with_on in zip(*ran, strict=True):
        assert any(operation.startswith("c10d") for operation in bare)
        assert with_off == bare
        extra = Counter(with_on) - Counter(bare)
        collectives = {operation: n for operation, n in extra.items() if operation.startswith("c10d")}
        assert collectives == {"c10d.allreduce_.default": 1}
        assert not any("_local_scalar_dense" in operation for operation in extra)


def test_a_monitor_beside_it_changes_nothing() -> None:
    spawn(1, _watch_with_a_monitor, clipping(1, LARGE, {}, {"micro_batch_size": 4}))


def _watch_with_a_monitor(cfg: Config) -> None:
    step = Step(cfg, lines=True)
    assert step.qk_clip is not None
    monitor, trainer, batch = Monitor(step.trainer, step.topology, cfg), step.trainer, step.batches.step(0)

    def clipped(*contexts: AbstractContextManager) -> float:
        with contexts[0], contexts[1]:
            trainer.pipeline.train(*batch)
        return step.qk_clip.measure()["qk_clipped"].item()

    alone = clipped(step.qk_clip.watching(), nothing())
    assert alone > 0
    assert clipped(step.qk_clip.watching(), monitor.forward(True)) == alone
    assert clipped(monitor.forward(True), step.qk_clip.watching()) == alone
    assert not any(attention.probes for _, attention in trainer.attention_layers())
