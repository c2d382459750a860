"""Low-rank attention in any layout against the dense reference, which multiplies the factors to whole matrices."""

from pathlib import Path

import pytest
import torch

from model.decoder import Decoder
from tests.distributed import spawn
from tests.layouts import VOCAB, config, dense_batches, dense_decoder, single_topology, train_layout
from tests.reference_training import train_dense
from tests.training.checkpoint.test_state import LOSS_NOISE, NORM_NOISE, go_on_from_each, merged, save_and_go_on
from tests.training.checkpoint.test_state import assert_equal as assert_tensors
from tests.training.test_dense_reference import assert_equal
from training.build import build_chunks

STEPS = 5
SIGMA = {"reparam": {"kind": "sigma"}}
ALL = {"low_rank": {"targets": ["q", "k", "v"]}}
PER_HEAD = {"low_rank": {"targets": ["q", "k", "v"], "per_head": True}}
QUERIES_KEYS = {"low_rank": {"targets": ["k", "q"], "rank": 6}}
GROUPED = {"kv_heads": 2, "norm": "rmsnorm", "positions": "rope", "activation": "swiglu", "qk_norm": True}

LAYOUTS = {
    "tp2 pp2, grouped queries, sigma": (4, ALL | GROUPED | SIGMA, {"tp": 2, "pp": 2}, {}),
    "tp2, sequence parallel, per head, grouped queries, sigma": (
        2,
        PER_HEAD | GROUPED | SIGMA,
        {"tp": 2, "sequence_parallel": True},
        {"recompute": "full"},
    ),
}
MORE = {
    "one process": (1, ALL, {}, {}),
    "one process, per head": (1, PER_HEAD, {}, {}),
    "tp2": (2, ALL, {"tp": 2}, {}),
    "tp2, queries and keys": (2, QUERIES_KEYS | GROUPED, {"tp": 2}, {}),
    "tp2, queries and keys, sigma": (2, QUERIES_KEYS | SIGMA, {"tp": 2}, {}),
    "tp2, values": (2, {"low_rank": {"targets": ["v"]}} | SIGMA, {"tp": 2}, {}),
    "tp2, sequence parallel, recompute": (2, ALL | SIGMA, {"tp": 2, "sequence_parallel": True}, {"recompute": "full"}),
    "tp4, per head": (4, PER_HEAD | SIGMA, {"tp": 4}, {}),
    "tp4, grouped queries": (4, ALL, {"tp": 4}, {}),
    "tp2 pp2, per head": (4, PER_HEAD, {"tp": 2, "pp": 2}, {}),
    "tp2 pp2 zbv": (4, ALL | SIGMA, {"tp": 2, "pp": 2, "schedule": "zbv"}, {}),
    "tp2 pp2 zbv, per head": (4, PER_HEAD | SIGMA, {"tp": 2, "pp": 2, "schedule": "zbv"}, {}),
    "tp2 pp2 zero bubble, queries and keys": (
        4,
        QUERIES_KEYS,
        {"tp": 2, "pp": 2, "schedule": "interleaved_zero_bubble"},
        {},
    ),
    "tp2 dp2 ZeRO-2, 2 micro-batches": (4, ALL | SIGMA, {"tp": 2, "zero_stage": 2}, {"micro_batch_size": 2}),
}


@pytest.mark.parametrize("name", LAYOUTS)
def test_every_gradient_equals_the_dense_run(name: str) -> None:
    check(*LAYOUTS[name])


@pytest.mark.slow
@pytest.mark.parametrize("name", MORE)
def test_every_gradient_in_other_layouts(name: str) -> None:
    check(*MORE[name])


def check(world_size: int, model: dict, parallel: dict, training: dict) -> None:
    cfg = config(world_size, model=model, parallel=parallel, training=training)
    dense = config(1, model=model)
    expected = train_dense(dense_decoder(dense), dense_batches(dense, STEPS))
    actual = spawn(world_size, train_layout, cfg, STEPS)[0]
    assert any(name.endswith("low_rank.weight") for name in actual.gradients[0])
    assert_equal(actual, expected, rtol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("low_rank", [ALL, PER_HEAD], ids=["all heads", "per head"])
def test_a_layout_goes_on_from_another(low_rank: dict, tmp_path: Path) -> None:
    """Every tensor of a checkpoint of tp4 exactly, in tp2 x pp2 and on one process, then the unchanged run's losses."""
    model = {"heads": 8, "kv_heads": 4} | SIGMA | low_rank
    expected = merged(spawn(4, save_and_go_on, config(4, model=model, parallel={"tp": 4}), tmp_path))
    for world_size, parallel in ((4, {"tp": 2, "pp": 2}), (1, {})):
        cfg = config(world_size, model=model, parallel=parallel, training={"seed": 1})
        actual = merged([result for (result,) in spawn(world_size, go_on_from_each, cfg, [tmp_path])])
        assert_tensors(actual.tensors, expected.tensors)
        losses, norms = zip(*expected.record, strict=True)
        assert [loss for loss, _ in actual.record] == pytest.approx(losses, rel=LOSS_NOISE)
        assert [norm for _, norm in actual.record] == pytest.approx(norms, rel=NORM_NOISE)


def decoder(**model: object) -> Decoder:
    (chunk,) = build_chunks(config(1, model=model), single_topology(), VOCAB)
    return chunk


def attention_parameters(**model: object) -> int:
    return sum(p.numel() for p in decoder(**model).layers["0"].attention.parameters())


def test_the_default_rank_keeps_the_number_of_parameters() -> None:
    """Width 32, 4 heads of 8: all heads by half the width, 2 x 32 x 16 = 32 x 32; a head by 6, 6 (32 + 8) of 8 x 32."""
    full = attention_parameters()
    assert full == 4 * 32 * 32
    assert attention_parameters(**ALL) == full
    assert attention_parameters(**PER_HEAD) == 32 * 32 + 3 * 4 * 6 * (32 + 8)
    assert attention_parameters(**QUERIES_KEYS) == 2 * 32 * 32 + 2 * 6 * (32 + 32)
    assert attention_parameters(**ALL, kv_heads=2) == 32 * 32 + 3 * 16 * 32 + 16 * (32 + 16 + 16)


@pytest.mark.parametrize("low_rank", [ALL, PER_HEAD], ids=["all heads", "per head"])
def test_products_start_as_wide_as_full_matrices(low_rank: dict) -> None:
    """The sampling error of a product of factors with R x 128 elements is well under 5 %."""
    chunk = decoder(hidden_size=128, heads=2, init_std=0.05, **low_rank)
    attention = chunk.layers["1"].attention
    inner = attention.qkv.weight.split(list(attention.qkv.blocks.values()))
    outer = attention.low_rank.weight.split(list(attention.low_rank.blocks.values()))
    for a, b in zip(inner, outer, strict=True):
        heads = 2 if "per_head" in low_rank["low_rank"] else 1
        product = torch.cat([y @ x for x, y in zip(a.chunk(heads), b.chunk(heads), strict=True)])
        assert product.shape == (128, 128)
        assert product.std().item() == pytest.approx(0.05, rel=0.05)


def test_heads_are_the_rows_of_the_factor_next_to_them() -> None:
    attention = decoder(**QUERIES_KEYS, kv_heads=2).layers["0"].attention
    assert attention.projection("q") == (attention.low_rank, slice(0, 32))
    assert attention.projection("k") == (attention.low_rank, slice(32, 48))
    assert attention.projection("v") == (attention.qkv, slice(12, 28))
