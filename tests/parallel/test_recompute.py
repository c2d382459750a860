"""Recomputation: the same bits, less kept, nothing costly done twice, probes not fooled."""

import gc
from collections import Counter
from contextlib import ExitStack

import pytest
import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode

from configs.schema import Config
from model.decoder import Decoder
from monitoring.parts import probed
from parallel import topology as topologies
from tests.distributed import spawn
from tests.layouts import VOCAB, RandomSamples, config, single_topology
from training.batches import Batches
from training.build import build_chunks, build_trainer

LLAMA = {"norm": "rmsnorm", "positions": "rope", "activation": "swiglu", "kv_heads": 2, "qk_norm": True}
MODELS = {
    "GPT with biases": {"bias": True},
    "Llama": LLAMA,
    "peri, capped logits, low rank": {
        "norm_placement": "peri",
        "attention_softcap": 2.0,
        "low_rank": {"targets": ["q"], "per_head": True},
    },
}


class Log(TorchDispatchMode):
    """Counts operations, and remembers the storages they made."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()
        self.made: dict[int, tuple[StorageWeakRef, int]] = {}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        self.counts[str(func)] += 1
        result = func(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, tuple | list) else (result,):
            if isinstance(tensor, Tensor):
                storage = tensor.untyped_storage()
                self.made[storage._cdata] = StorageWeakRef(storage), storage.nbytes()
        return result

    def bytes_alive(self) -> int:
        gc.collect()
        return sum(size for storage, size in self.made.values() if not storage.expired())


def built(recompute: str, model: dict, precision: str = "fp32") -> tuple[Decoder, Tensor, Config]:
    cfg = config(1, model=model, training={"recompute": recompute, "precision": precision})
    (decoder,) = build_chunks(cfg, single_topology(), VOCAB)
    tokens_BT, _ = Batches(RandomSamples(16), 8, single_topology()).step(0)
    return decoder, tokens_BT, cfg


def gradients(recompute: str, model: dict, precision: str) -> dict[str, Tensor]:
    decoder, tokens_BT, _ = built(recompute, model, precision)
    decoder(tokens_BT).float().square().mean().backward()
    return {name: p.grad for name, p in decoder.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("name", MODELS)
def test_gradients_are_the_same_bits(name: str, precision: str) -> None:
    plain, selective, full = (gradients(kind, MODELS[name], precision) for kind in ("none", "selective", "full"))
    assert plain.keys() == selective.keys() == full.keys()
    for key, gradient in plain.items():
        assert gradient.any() or key.endswith("gamma"), key
        assert torch.equal(selective[key], gradient), key
        assert torch.equal(full[key], gradient), key


@pytest.mark.parametrize("name", MODELS)
def test_each_keeps_less_than_the_one_before(name: str) -> None:
    """Bytes alive between the forward and the backward pass, beyond parameters."""
    kept = {}
    for kind in ("none", "selective", "full"):
        decoder, tokens_BT, _ = built(kind, MODELS[name])
        with Log() as log:
            logits = decoder(tokens_BT)
        kept[kind] = log.bytes_alive()
        assert logits.requires_grad
    assert kept["full"] < kept["selective"] < kept["none"], kept
    assert kept["selective"] < 0.75 * kept["none"] and kept["full"] < 0.5 * kept["none"], kept


def test_selective_repeats_no_product_and_no_attention() -> None:
    counts = {}
    for kind in ("none", "selective", "full"):
        decoder, tokens_BT, _ = built(kind, LLAMA)
        loss = decoder(tokens_BT).sum()
        with Log() as log:
            loss.backward()
        counts[kind] = log.counts
    costly = ("aten.mm.default", "aten._scaled_dot_product_flash_attention_for_cpu.default")
    assert all(counts["selective"][op] == counts["none"][op] for op in costly)
    assert all(counts["full"][op] > counts["none"][op] for op in costly)
    assert counts["selective"]["aten.silu.default"] > counts["none"]["aten.silu.default"]


@pytest.mark.parametrize("kind", ["selective", "full"])
def test_a_probe_sees_each_token_once_and_changes_nothing(kind: str) -> None:
    """Selective recomputation counts operations: a probe's product would shift what it finds again."""
    decoder, tokens_BT, _ = built(kind, LLAMA)
    plain, _, _ = built("none", LLAMA)
    seen: list[list[Tensor]] = []
    for model in (decoder, plain):
        seen.append([])

        def probe(q_BHTK: Tensor, k_BGTK: Tensor, scale: float) -> None:
            seen[-1].append(scale * q_BHTK.detach()[0, 0] @ k_BGTK.detach()[0, 0].T)

        with ExitStack() as probes:
            for _, attention in model.attention_layers():
                probes.enter_context(probed(attention, probe))
            model(tokens_BT).square().mean().backward()
    assert len(seen[0]) == 4 and all(map(torch.equal, *seen))
    for (name, ours), theirs in zip(decoder.named_parameters(), plain.parameters(), strict=True):
        assert (ours.grad is None) == (theirs.grad is None)
        assert ours.grad is None or torch.equal(ours.grad, theirs.grad), name


@pytest.mark.parametrize("sequence_parallel", [False, True])
def test_selective_repeats_no_reduction(sequence_parallel: bool) -> None:
    layout = {"tp": 2, "sequence_parallel": sequence_parallel}
    plain, selective = (
        spawn(2, _backward, config(2, model=LLAMA, parallel=layout, training={"recompute": kind}))
        for kind in ("none", "selective")
    )
    for (expected, without), (actual, beside) in zip(plain, selective, strict=True):
        assert all(torch.equal(actual[name], gradient) for name, gradient in expected.items())
        reductions = [op for op in without if "reduce" in op]
        assert reductions and all(without[op] == beside[op] for op in reductions), (without, beside)


def _backward(cfg: Config) -> tuple[dict[str, Tensor], Counter[str]]:
    topology = topologies.start(cfg.parallel, "cpu")
    trainer = build_trainer(cfg, topology, VOCAB)
    tokens_BT, targets_BT = Batches(RandomSamples(16), 8, topology).step(0)
    loss = trainer.pipeline.loss(trainer.chunks[0](tokens_BT), targets_BT)
    with Log() as log:
        loss.backward()
    gradients = {name: p.grad for name, p in trainer.named_parameters() if p.grad is not None}
    return gradients, Counter({op: count for op, count in log.counts.items() if "c10d" in op})
