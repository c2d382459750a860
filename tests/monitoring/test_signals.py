"""Every signal, in any layout, equals the dense float64 computation; every rank gets it; other steps pay nothing."""

import numpy as np
import pytest
import torch

from configs.schema import Config
from monitoring.measure import Measurement
from monitoring.signals import Monitor
from parallel import topology as topologies
from parallel.gradients import sum_partial_gradients
from tests.distributed import spawn
from tests.layouts import VOCAB, RandomSamples, config, update
from tests.monitoring.dense_signals import dense_signals
from training.batches import Batches
from training.build import build_trainer

STEPS = 2
SIGMA = {"reparam": {"kind": "sigma"}}
WIDE = {"init_std": 0.2}
"""Weights ten times the usual: attention, tokens and log Z are then far from trivial."""
LLAMA = {"norm": "rmsnorm", "positions": "rope", "activation": "swiglu", "kv_heads": 2, "qk_norm": True}

LAYOUTS = {
    "one process": (1, {}, {}, {}),
    "tp2": (2, {}, {"tp": 2}, {}),
    "pp2": (2, {}, {"pp": 2}, {}),
    "tp2 pp2": (4, {}, {"tp": 2, "pp": 2}, {}),
    "tp2, sequence parallel": (2, {}, {"tp": 2, "sequence_parallel": True}, {}),
    "recompute": (1, {}, {}, {"recompute": "full"}),
    "4 micro-batches": (1, {}, {}, {"micro_batch_size": 2}),
    "grouped queries": (2, LLAMA, {"tp": 2}, {}),
    "dp2 ZeRO-1": (2, {}, {"zero_stage": 1}, {}),
    "dp2 ZeRO-2": (2, {}, {"zero_stage": 2}, {}),
}
MORE = {
    "pp2 interleaved": (2, {}, {"pp": 2, "schedule": "interleaved_1f1b"}, {}),
    "pp2 interleaved zero bubble": (2, {}, {"pp": 2, "schedule": "interleaved_zero_bubble"}, {}),
    "pp2 zbv": (2, LLAMA, {"pp": 2, "schedule": "zbv"}, {}),
    "pp2 1f1b, recompute, 4 micro-batches": (2, LLAMA, {"pp": 2}, {"recompute": "full", "micro_batch_size": 2}),
    "pp2 gpipe": (2, {}, {"pp": 2, "schedule": "gpipe"}, {}),
    "post-LN with biases": (2, {"norm_placement": "post", "bias": True}, {"tp": 2}, {}),
    "no norm": (2, {"norm": "none"}, {"tp": 2, "sequence_parallel": True}, {}),
    "tied head": (2, {"tie_embeddings": True}, {"tp": 2}, {}),
    "plain head": (2, {"reparam": {"kind": "sigma", "head": False}}, {"tp": 2}, {}),
    "qkv as one matrix": (2, {"reparam": {"kind": "sigma", "qkv": "qkv"}}, {"tp": 2}, {}),
    "qk+v, fused gate and up": (2, LLAMA | {"reparam": {"kind": "sigma", "qkv": "qk+v", "gate_up": "fused"}}, {}, {}),
    "tp2 dp2 ZeRO-2, sequence parallel": (4, LLAMA, {"tp": 2, "zero_stage": 2, "sequence_parallel": True}, {}),
    "pp2 dp2 ZeRO-1": (4, {}, {"pp": 2, "zero_stage": 1}, {"micro_batch_size": 2}),
    "tp2 pp2 dp2 zbv ZeRO-2": (
        8,
        LLAMA,
        {"tp": 2, "pp": 2, "zero_stage": 2, "schedule": "zbv"},
        {"micro_batch_size": 1},
    ),
}


def measured(cfg: Config, steps: int = STEPS) -> list[Measurement]:
    """Train as the loop does, measuring every step."""
    topology = topologies.start(cfg.parallel, "cpu")
    trainer = build_trainer(cfg, topology, VOCAB)
    monitor = Monitor(trainer, topology, cfg)
    length = cfg.training.sequence_length
    batches = Batches(RandomSamples(length), cfg.training.global_batch_size, topology)
    measurements = []
    for step in range(steps):
        with trainer.engine.accumulate(), monitor.forward(True):
            trainer.pipeline.train(*batches.step(step))
            sum_partial_gradients(trainer.parameters(), topology.tensor)
            trainer.spectral.pull_back()
        monitor.before_update()
        update(trainer, cfg)
        trainer.spectral.refresh()
        measurements.append(monitor.collect())
    return measurements


@pytest.mark.parametrize("kind", ["sigma", "none"])
@pytest.mark.parametrize("name", LAYOUTS)
def test_every_signal_equals_the_dense_computation(name: str, kind: str) -> None:
    check(*LAYOUTS[name], kind)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["sigma", "none"])
@pytest.mark.parametrize("name", MORE)
def test_every_signal_in_other_layouts(name: str, kind: str) -> None:
    check(*MORE[name], kind)


def check(world_size: int, model: dict, parallel: dict, training: dict, kind: str) -> None:
    reparam = model.get("reparam", {}) | {"kind": kind}
    if model.get("tie_embeddings"):
        reparam["head"] = False
    cfg = config(world_size, model=WIDE | model | {"reparam": reparam}, parallel=parallel, training=training)
    expected = dense_signals(cfg, STEPS)
    ranks = spawn(world_size, measured, cfg)
    for step in range(STEPS):
        for rank in ranks[1:]:
            assert_identical(rank[step], ranks[0][step])
        assert_close(ranks[0][step], expected[step], rtol=2e-4)


def assert_identical(one: Measurement, other: Measurement) -> None:
    assert one.matrices == other.matrices and one.maximum == other.maximum
    for name, array in one.arrays().items():
        np.testing.assert_array_equal(array, other.arrays()[name], name)


def assert_close(ours: Measurement, expected: dict[str, torch.Tensor], rtol: float) -> None:
    """To `rtol` of each number, or a hundredth of that of the largest of its kind: fp32 rounds sums by their terms."""
    arrays = ours.arrays()
    assert arrays.keys() == expected.keys() | {"matrix"}
    assert len(set(arrays["matrix"])) == len(arrays["sigma"])
    for name, theirs in expected.items():
        atol = rtol * 1e-2 * float(theirs.nan_to_num().abs().max())
        np.testing.assert_allclose(arrays[name], theirs.numpy(), rtol, atol, err_msg=name)
