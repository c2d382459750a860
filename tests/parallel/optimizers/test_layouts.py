"""Muon and StableAdamW in every layout equal their formulas over whole tensors."""

from itertools import product
from typing import Any

import pytest

from tests.distributed import spawn
from tests.layouts import config, dense_batches, dense_decoder, train_layout
from tests.reference_training import train_dense
from tests.training.test_dense_reference import assert_equal

STEPS = 6
SIGMA = {"reparam": {"kind": "sigma"}}
LLAMA = {"norm": "rmsnorm", "positions": "rope", "activation": "swiglu", "kv_heads": 2, "qk_norm": True}

LAYOUTS: dict[str, tuple[int, dict, dict]] = {
    "one process": (1, {}, {}),
    "tp2": (2, {"tp": 2}, {}),
    "tp4": (4, {"tp": 4}, {}),
    "pp2": (2, {"pp": 2}, {}),
    "pp2 interleaved": (2, {"pp": 2, "schedule": "interleaved_1f1b"}, {}),
    "dp2 ZeRO-1": (2, {"zero_stage": 1}, {}),
    "dp2 ZeRO-2": (2, {"zero_stage": 2}, {}),
    "dp4 ZeRO-2": (4, {"zero_stage": 2}, {}),
    "tp2 pp2": (4, {"tp": 2, "pp": 2}, {}),
    "tp2 dp2 ZeRO-1": (4, {"tp": 2, "zero_stage": 1}, {}),
    "tp2 dp2 ZeRO-2": (4, {"tp": 2, "zero_stage": 2}, {}),
    "tp2 pp2 dp2": (8, {"tp": 2, "pp": 2}, {"micro_batch_size": 1}),
}
LOW_RANK = {"low_rank": {"targets": ("q", "k"), "rank": 4}}
MODELS = {"plain": {}, "sigma": SIGMA, "llama": LLAMA, "biases": SIGMA | {"bias": True}, "low rank": LOW_RANK}
FAST = {
    ("muon", "one process", "plain"), ("muon", "tp2 dp2 ZeRO-2", "sigma"), ("stable_adamw", "tp2 dp2 ZeRO-1", "biases"),
}  # fmt: skip


def cases() -> list[Any]:
    """sigmaReparam in every layout, the other models in some."""
    pairs = [(layout, "sigma") for layout in LAYOUTS]
    pairs += product(["one process", "tp2", "pp2", "dp2 ZeRO-2", "tp2 dp2 ZeRO-2"], ["plain"])
    pairs += product(["tp2 pp2", "tp2 dp2 ZeRO-1", "tp2 pp2 dp2"], ["llama", "biases", "low rank"])
    every = [(optimizer, *pair) for optimizer in ("muon", "stable_adamw") for pair in pairs]
    return [pytest.param(*case, marks=[] if case in FAST else pytest.mark.slow) for case in every]


@pytest.mark.parametrize(("optimizer", "layout", "model"), cases())
def test_every_gradient_and_weight_equals_the_dense_run(optimizer: str, layout: str, model: str) -> None:
    world_size, parallel, training = LAYOUTS[layout]
    fields = {"name": optimizer, "eps": 1e-4}  # with the larger one of `config`, fewer tensors have an RMS_t over 1
    cfg = config(world_size, model=MODELS[model], parallel=parallel, training=training, optimizer=fields)
    dense_cfg = config(1, model=MODELS[model], optimizer=fields)
    expected = train_dense(dense_decoder(dense_cfg), dense_batches(dense_cfg, STEPS))
    actual = spawn(world_size, train_layout, cfg, STEPS)[0]
    assert_equal(actual, expected, rtol=1e-5)
