"""Every signal, in any layout, equals the dense float64 computation; every rank gets it; other steps pay nothing."""

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint import HuggingFaceStorageReader, HuggingFaceStorageWriter
from torch.utils._python_dispatch import TorchDispatchMode

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
from training.checkpoint.state import TrainingState

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
    "low rank": (2, LLAMA | {"low_rank": {"targets": ["q", "k", "v"]}}, {"tp": 2, "sequence_parallel": True}, {}),
    "low rank per head, queries and keys": (2, {"low_rank": {"targets": ["q", "k"], "per_head": True}}, {"tp": 2}, {}),
    "peri, LayerScale, capped logits, normed embeddings": (
        2,
        {"norm_placement": "peri", "residual": {"kind": "layerscale"}, "embedding_norm": True}
        | {"attention_softcap": 1.0, "logit_softcap": 2.0},
        {"tp": 2, "sequence_parallel": True},
        {},
    ),
    "reordered, Xavier, z-loss": (2, {"norm_placement": "reordered", "init": "xavier"}, {"tp": 2}, {"z_loss": 1e-2}),
    "tp2 dp2 ZeRO-2, sequence parallel": (4, LLAMA, {"tp": 2, "zero_stage": 2, "sequence_parallel": True}, {}),
    "pp2 dp2 ZeRO-1": (4, {}, {"pp": 2, "zero_stage": 1}, {"micro_batch_size": 2}),
    "tp2 pp2 dp2 zbv ZeRO-2": (
        8,
        LLAMA,
        {"tp": 2, "pp": 2, "zero_stage": 2, "schedule": "zbv"},
        {"micro_batch_size": 1},
    ),
}


class Run:
    """One rank that trains as the loop does."""

    def __init__(self, cfg: Config) -> None:
        self.cfg, self.topology = cfg, topologies.start(cfg.parallel, "cpu")
        self.trainer = build_trainer(cfg, self.topology, VOCAB)
        self.monitor = Monitor(self.trainer, self.topology, cfg)
        samples = RandomSamples(cfg.training.sequence_length)
        self.batches = Batches(samples, cfg.training.global_batch_size, self.topology)

    def step(self, step: int, *, measuring: bool = True, broken: tuple[int, int] | None = None) -> Measurement | None:
        """`broken`: the layer and head whose gradient gets a NaN on this rank."""
        trainer = self.trainer
        with trainer.engine.accumulate(), self.monitor.forward(measuring):
            trainer.pipeline.train(*self.batches.step(step))
            sum_partial_gradients(trainer.parameters(), self.topology.tensor)
            if broken is not None:
                attention = dict(trainer.attention_layers())[broken[0]]
                attention.qkv.weight.grad[broken[1] * attention.head_size] = torch.nan  # type: ignore[index]
            trainer.spectral.pull_back()
        if measuring:
            self.monitor.before_update()
        update(trainer, self.cfg)
        trainer.spectral.refresh()
        return self.monitor.collect() if measuring else None


def measured(cfg: Config, steps: int = STEPS) -> list[Measurement | None]:
    run = Run(cfg)
    return [run.step(step) for step in range(steps)]


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


@pytest.mark.parametrize("kind", ["sigma", "none"])
def test_bf16_activations(kind: str) -> None:
    """Activations are rounded to 8 bits, and what is seen of them with them; sums over them are still fp32."""
    cfg = config(1, model=WIDE | {"reparam": {"kind": kind}}, training={"precision": "bf16"})
    expected = dense_signals(cfg, 1)
    (ours,) = spawn(1, measured, cfg, 1)
    coarse = {"update_ratio", "qk_grad_ratio"}  # Adam's first step turns the sign of a rounded gradient into its size
    arrays = ours[0].arrays()
    for name, theirs in expected[0].items():
        rtol = 0.1 if name in coarse else 0.03
        np.testing.assert_allclose(
            arrays[name], theirs.numpy(), rtol, 0.02 * float(theirs.nan_to_num().abs().max()), name
        )


LOGGED = {"tp2, sequence parallel": (2, {"tp": 2, "sequence_parallel": True}), "pp2 dp2": (4, {"pp": 2})}


@pytest.mark.parametrize("kind", ["sigma", "none"])
@pytest.mark.parametrize("name", LOGGED)
def test_other_steps_run_not_one_operation_more(name: str, kind: str) -> None:
    """A step after a measured one dispatches what it does without a monitor: no collective, no copy to the host."""
    world_size, parallel = LOGGED[name]
    cfg = config(world_size, model={"reparam": {"kind": kind}}, parallel=parallel)
    for without, beside in zip(*(spawn(world_size, operations, cfg, on) for on in (False, True)), strict=True):
        assert without[1] == beside[1]
        assert any(op.startswith("c10d") for op in without[1])
        # Loss and norm are read as one list; nothing reads a single number from the device, the optimizer neither.
        assert "aten._local_scalar_dense.default" not in without[1]
        more = Counter(op for op in beside[0] if op.startswith("c10d")) - Counter(
            op for op in without[0] if op.startswith("c10d")
        )
        allowed = (
            {"c10d.allgather_.default", "c10d.allreduce_.default"} if kind == "none" else {"c10d.allgather_.default"}
        )
        assert more.keys() <= allowed, more
        assert 1 <= more["c10d.allgather_.default"] <= (3 if parallel.get("sequence_parallel") else 1)


class Log(TorchDispatchMode):
    """Notes every operation that is dispatched."""

    def __init__(self) -> None:
        super().__init__()
        self.operations: list[str] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        self.operations.append(str(func))
        return func(*args, **(kwargs or {}))


def operations(cfg: Config, monitored: bool) -> list[list[str]]:
    """What a step that is measured (if `monitored`) and the next, which is not, dispatch on this rank."""
    run = Run(cfg)
    if monitored:
        run.step(0)  # a plain matrix's power iteration begins with the first
    else:
        run.step(0, measuring=False)
    logs = []
    for step in (1, 2):
        with Log() as log:
            run.step(step, measuring=monitored and step == 1)
        logs.append(log.operations)
    for chunk in run.trainer.chunks:
        assert chunk.layer_probe is chunk.logits_probe is None
        assert all(not attention.probes for _, attention in chunk.attention_layers())
    return logs


@pytest.mark.parametrize("kind", ["sigma", "none"])
def test_a_resumed_run_measures_the_same_bits(kind: str, tmp_path: Path) -> None:
    cfg = config(2, model={"reparam": {"kind": kind}}, parallel={"tp": 2})
    through, resumed = (spawn(2, measured_across_a_checkpoint, cfg, tmp_path, again)[0] for again in (False, True))
    for one, other in zip(resumed, through, strict=True):
        assert_identical(one, other)


def measured_across_a_checkpoint(cfg: Config, folder: Path, again: bool) -> list[Measurement]:
    """Measurements of steps 2 and 4 (counted from 0); a checkpoint is written before step 3, or loaded there."""
    run = Run(cfg)
    state = TrainingState(run.trainer, run.topology)
    if again:
        dcp.load(state.to_load(), storage_reader=HuggingFaceStorageReader(str(folder)))
        state.loaded(2)
    else:
        run.step(0)
        run.step(1, measuring=False)
        dcp.save(state.to_save(), storage_writer=HuggingFaceStorageWriter(str(folder), save_distributed=True))
    kept = [run.step(step, measuring=step % 2 == 0) for step in range(2, 5)]
    return [measurement for measurement in kept if measurement is not None]


def test_numbers_that_are_not_finite_are_told_apart() -> None:
    """A NaN in one matrix's gradient shows in that matrix, its head and no other."""
    ranks = spawn(2, measured_with_a_nan, config(2, parallel={"zero_stage": 2}))
    for ours in ranks:
        arrays = ours.arrays()
        (broken,) = np.nonzero(np.isnan(arrays["grad_norm"]))[0].tolist()
        assert arrays["matrix"][broken] == "layers.1.attention.qkv.q"
        assert np.argwhere(np.isnan(arrays["head_grad"])).tolist() == [[1, 2]]
        assert np.isfinite(arrays["entropy"]).all() and np.isfinite(arrays["sigma"]).all()


def measured_with_a_nan(cfg: Config) -> Measurement | None:
    run = Run(cfg)
    return run.step(0, broken=(1, 2) if run.topology.rank == 1 else None)


def test_a_shard_whose_weights_jump_is_named() -> None:
    ranks = spawn(2, measured_around_a_flip, config(2, parallel={"tp": 2}))
    for before, after in ranks:
        grown = np.argwhere(after.shard_rms_MP > 1.5 * before.shard_rms_MP)
        ((matrix, tp_rank),) = grown.tolist()
        assert after.matrices[matrix] == "layers.2.feedforward.down" and tp_rank == 1


def measured_around_a_flip(cfg: Config) -> tuple[Measurement | None, Measurement | None]:
    run = Run(cfg)
    before = run.step(0)
    if run.topology.tensor.rank == 1:
        weight = run.trainer.chunks[0].layers["2"].feedforward.down.weight
        for fragment in run.trainer.engine.owned():
            if fragment.parameter is weight:
                fragment.weight[7] = 2.0
    return before, run.step(1)
