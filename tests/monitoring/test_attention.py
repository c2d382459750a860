"""What the monitor gathers in any layout equals the entropy of the dense reference's attention, head by head."""

import pytest
import torch
from torch import Tensor

from configs.schema import Config
from model.attention import AttentionProbe
from monitoring.attention import AttentionMonitor
from monitoring.measure import Measurement, measure
from parallel import topology as topologies
from tests.distributed import spawn
from tests.layouts import VOCAB, RandomSamples, config, dense_batches, dense_decoder
from tests.monitoring.test_entropy import full_matrix
from tests.reference import DenseDecoder
from training.batches import Batches
from training.build import build_trainer

MODEL = {"norm": "rmsnorm", "positions": "rope", "kv_heads": 2, "qk_norm": True, "reparam": {"kind": "sigma"}}
LAYOUTS = {
    "one process": (1, {}, {}),
    "recompute, 4 micro-batches": (1, {}, {"recompute": "full", "micro_batch_size": 2}),
    "bf16": (1, {}, {"precision": "bf16"}),
    "tp2": (2, {"tp": 2}, {}),
    "tp2, 600 tokens": (2, {"tp": 2}, {"sequence_length": 600}),
    "tp2, sequence parallel": (2, {"tp": 2, "sequence_parallel": True}, {}),
    "dp2": (2, {}, {}),
    "pp2 zbv": (2, {"pp": 2, "schedule": "zbv"}, {}),
    "tp2 pp2": (4, {"tp": 2, "pp": 2}, {}),
    "tp2 dp2": (4, {"tp": 2}, {}),
}


class ProbedDecoder(DenseDecoder):
    """The dense reference, noting q and k (after norms and rotation) of every layer."""

    def rotate(self, x: Tensor) -> Tensor:
        turned = super().rotate(x)
        self.seen = [*getattr(self, "seen", []), turned.detach()]
        return turned


def measured(cfg) -> Measurement | None:  # type: ignore[no-untyped-def]
    topology = topologies.start(cfg.parallel, "cpu")
    trainer = build_trainer(cfg, topology, VOCAB)
    monitor = AttentionMonitor(trainer.attention_layers(), topology)
    length = cfg.training.sequence_length
    batches = Batches(RandomSamples(length), cfg.training.global_batch_size, topology)
    with trainer.engine.accumulate(), monitor.measuring():
        trainer.pipeline.train(*batches.step(0))
        trainer.spectral.pull_back()
    return measure(monitor, trainer.spectral, topology, length)


@pytest.mark.parametrize("name", LAYOUTS)
def test_entropy_and_logits_of_every_head(name: str) -> None:
    world_size, parallel, training = LAYOUTS[name]
    cfg = config(world_size, model=MODEL, parallel=parallel, training=training)
    results = spawn(world_size, measured, cfg)
    assert all(result is None for result in results[1:])
    ours = results[0]

    length = {"sequence_length": cfg.training.sequence_length}
    dense = dense_decoder(config(1, model=MODEL, training=length))
    probed = ProbedDecoder(dense.config, dense.vocab_size, dense.parameters)
    with torch.no_grad():
        probed.logits(dense_batches(dense.config, 1)[0][0])
    entropy, largest = [], []
    for q, k in zip(probed.seen[::2], probed.seen[1::2], strict=True):
        row_entropy, row_largest = full_matrix(q, k, probed.config.model.head_size**-0.5)
        entropy.append(row_entropy.mean((0, 2)))
        largest.append(row_largest.amax((0, 2)))
    # bf16: the activations themselves are bf16, so q and k differ from the fp32 reference's by their rounding.
    atol = 5e-3 if name == "bf16" else 1e-4
    torch.testing.assert_close(torch.from_numpy(ours.entropy_LA).double(), torch.stack(entropy), rtol=0, atol=atol)
    torch.testing.assert_close(
        torch.from_numpy(ours.max_logit_LA).double(),
        torch.stack(largest),
        rtol=2e-2 if name == "bf16" else 1e-4,
        atol=1e-4,
    )
    assert ours.matrices[:2] == ["layers.0.attention.output", "layers.0.attention.qkv.k"]
    assert ours.matrices[-1] == "head" and len(ours.matrices) == 4 * 6 + 1
    assert (ours.gamma_M == 1).all() and (ours.sigma_M > 0).all()


def test_nothing_is_measured_outside_the_block() -> None:
    from tests.layouts import single_topology
    from training.build import build_chunks

    cfg = config(1)
    (chunk,) = build_chunks(cfg, single_topology(), VOCAB)
    monitor = AttentionMonitor(chunk.attention_layers(), single_topology())
    with monitor.measuring(active=False):
        assert all(layer.attention.probe is None for layer in chunk.layers.values())
    with monitor.measuring():
        assert all(layer.attention.probe is not None for layer in chunk.layers.values())
    assert all(layer.attention.probe is None for layer in chunk.layers.values())


def test_a_bf16_run_reports_the_entropy_of_its_own_queries_and_keys() -> None:
    """No precision is lost on top of the activations': 1e-4 nats against the full matrix in float64."""
    cfg = config(1, model=MODEL, training={"precision": "bf16"})
    ((ours, theirs),) = spawn(1, measured_and_exact, cfg)
    torch.testing.assert_close(torch.from_numpy(ours.entropy_LA).double(), theirs, rtol=0, atol=1e-4)


def measured_and_exact(cfg: Config) -> tuple[Measurement | None, Tensor]:
    """What the monitor says of one step, and the float64 entropies (layers, heads) of the q and k it was shown."""
    topology = topologies.start(cfg.parallel, "cpu")
    trainer = build_trainer(cfg, topology, VOCAB)
    monitor = AttentionMonitor(trainer.attention_layers(), topology)
    exact: dict[int, Tensor] = {}
    with trainer.engine.accumulate(), monitor.measuring():
        for index, attention in trainer.attention_layers():
            attention.probe = both(attention.probe, exact, index)
        trainer.pipeline.train(*Batches(RandomSamples(16), cfg.training.global_batch_size, topology).step(0))
        trainer.spectral.pull_back()
    return measure(monitor, trainer.spectral, topology, 16), torch.stack([exact[i] for i in sorted(exact)])


def both(probe: AttentionProbe | None, exact: dict[int, Tensor], index: int) -> AttentionProbe:
    """The monitor's probe, and the full matrix beside it."""
    assert probe is not None

    def see(q_BHTK: Tensor, k_BGTK: Tensor, scale: float) -> None:
        assert q_BHTK.dtype == torch.bfloat16
        exact[index] = full_matrix(q_BHTK.detach(), k_BGTK.detach(), scale)[0].mean((0, 2))
        probe(q_BHTK, k_BGTK, scale)

    return see
