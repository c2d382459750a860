"""Operations of a training step: by hand, and as torch counts those of our decoder.

Source of the convention: Chowdhery et al. 2022, appendix B.
"""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from configs.schema import Config, ModelConfig
from model.flops import training_flops
from parallel.embedding import count_rows
from tests.layouts import VOCAB, config, single_topology
from training.build import build_chunks
from training.meter import Meter

MATRIX_PRODUCTS = ("aten.mm", "aten.addmm", "aten.bmm")


def test_a_small_decoder_by_hand() -> None:
    model = ModelConfig(layers=2, hidden_size=8, heads=2, ffn_size=20)
    found = training_flops(model, rows=64, length=16)
    # q, k, v and output 4 x 8 x 8, feed-forward 2 x 8 x 20, twice; the head 64 x 8: 6 operations each per token.
    assert found.matrices == 6 * (2 * (4 * 64 + 2 * 160) + 512)
    # Per layer and token: scores 2 x 16 x 8 and values as much, and twice that backward.
    assert found.attention == 2 * 3 * (2 * 16 * 8 + 2 * 16 * 8)
    assert found.total == found.matrices + found.attention


def test_gpt3_175b_is_six_operations_per_parameter_and_some_attention() -> None:
    model = ModelConfig(layers=96, hidden_size=12288, heads=96)
    found = training_flops(model, rows=50304, length=2048)
    assert found.matrices == pytest.approx(6 * 175e9, rel=0.01)
    assert found.attention / found.matrices == pytest.approx(0.028, abs=0.001)  # 12 L D T / 6 N = T / 6 D


SHAPES = {
    "gelu": {},
    "swiglu, grouped queries": {"activation": "swiglu", "kv_heads": 2, "positions": "rope", "ffn_size": 48},
    "tied": {"tie_embeddings": True},
    "low rank": {"low_rank": {"targets": ["q", "k"], "rank": 8}},
    "low rank per head": {"low_rank": {"targets": ["q", "v"], "per_head": True}},
}


@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.parametrize("softcap", [None, 50.0], ids=["sdpa", "plain attention"])
def test_matrices_are_what_torch_counts(name: str, softcap: float | None) -> None:
    """Attention is counted by its convention and not by torch, which knows neither CPU flash nor causality."""
    cfg = config(model=SHAPES[name] | {"attention_softcap": softcap})
    counted = count(cfg)
    sequences, length = 2, cfg.training.sequence_length
    ours = training_flops(cfg.model, count_rows(VOCAB, cfg.model.vocab_multiple), length)
    attention = 0 if softcap is None else ours.attention
    assert counted == sequences * length * (ours.matrices + attention)


def count(cfg: Config) -> int:
    """Operations of the matrix products of a forward and backward pass over two sequences."""
    (chunk,) = build_chunks(cfg, single_topology(), VOCAB)
    tokens_BT = torch.zeros(2, cfg.training.sequence_length, dtype=torch.long)
    with FlopCounterMode(display=False) as counter:
        chunk(tokens_BT).sum().backward()
    return sum(n for op, n in counter.get_flop_counts()["Global"].items() if str(op) in MATRIX_PRODUCTS)


def test_the_meter_divides_by_devices_and_counts_the_second_pass_of_sam() -> None:
    cfg = config()
    once = Meter(cfg, single_topology(), VOCAB).rates(1000.0)
    flops = training_flops(cfg.model, 64, cfg.training.sequence_length).total
    assert once == {"tflops_per_device": pytest.approx(1000 * flops / 1e12)}  # a CPU has no MFU
    twice = Meter(config(optimizer={"sam_rho": 0.1}), single_topology(), VOCAB).rates(1000.0)
    assert twice["tflops_per_device"] == pytest.approx(2 * once["tflops_per_device"])


@pytest.mark.parametrize(
    ("precision", "tf32", "peak"), [("bf16", False, 989.4), ("fp32", True, 494.7), ("fp32", False, 66.9)]
)
def test_utilisation_is_of_the_peak_of_what_computes(
    monkeypatch: pytest.MonkeyPatch, precision: str, tf32: bool, peak: float
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA H100 80GB HBM3")
    monkeypatch.setattr(torch.backends.cuda, "matmul", SimpleNamespace(allow_tf32=tf32))
    gpu = replace(single_topology(), device=torch.device("cuda", 0))
    rates = Meter(config(training={"precision": precision}), gpu, VOCAB).rates(1e6)
    assert rates["mfu"] == pytest.approx(rates["tflops_per_device"] / peak)
