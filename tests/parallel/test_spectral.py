"""The algebra of sigmaReparam at the step boundary."""

from collections import Counter

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from configs.errors import ConfigError
from configs.schema import ReparamConfig
from parallel import topology as topologies
from parallel.gradients import sum_partial_gradients
from parallel.linear import ColumnParallelLinear, LinearSpec, RowParallelLinear, ShardedLinear
from parallel.spectral import SpectralReparam
from parallel.topology import TensorParallel
from tests.distributed import spawn
from tests.layouts import VOCAB, RandomSamples, config, single_topology, update
from training.batches import Batches
from training.build import build_chunks, build_trainer

SPEC = LinearSpec(TensorParallel(), seed=0, reparametrised=True)
LAYERS = {
    "column": lambda: ColumnParallelLinear("layer", 96, {"q": 64, "k": 32}, SPEC, std=0.1),
    "row": lambda: RowParallelLinear("layer", 96, 48, SPEC, std=0.1),
}


def reparam(layer: ShardedLinear, **fields: object) -> SpectralReparam:
    spectral = SpectralReparam([("layer", layer)], SPEC.tp)
    spectral.start(ReparamConfig.model_validate(fields), seed=0)
    return spectral


@pytest.mark.parametrize("start", ["svd", "power"])
@pytest.mark.parametrize("kind", LAYERS)
def test_sigma_is_the_spectral_norm_once_converged(kind: str, start: str) -> None:
    spectral = reparam(LAYERS[kind](), start=start)
    for _ in range(300):
        spectral.refresh()
    for matrix in spectral.matrices:
        exact = torch.linalg.matrix_norm(matrix.layer.weight[matrix.rows].double(), 2)
        torch.testing.assert_close(matrix.sigma.double(), exact, rtol=1e-5, atol=0)


@pytest.mark.parametrize("kind", LAYERS)
def test_svd_start_is_exact(kind: str) -> None:
    for matrix in reparam(LAYERS[kind]()).matrices:
        exact = torch.linalg.matrix_norm(matrix.layer.weight[matrix.rows].double(), 2)
        torch.testing.assert_close(matrix.sigma.double(), exact, rtol=1e-6, atol=0)


def test_twenty_power_iterations_come_within_two_percent() -> None:
    spectral = reparam(
        ColumnParallelLinear("layer", 512, {"a": 1024}, SPEC, std=0.02), start="power", start_iterations=20
    )
    (matrix,) = spectral.matrices
    ratio = matrix.sigma / torch.linalg.matrix_norm(matrix.layer.weight, 2)
    assert 0.97 < ratio <= 1.0 + 1e-6


@pytest.mark.parametrize("kind", LAYERS)
@pytest.mark.parametrize("converged", [True, False])
def test_the_pulled_back_gradient_is_orthogonal_to_the_weight(kind: str, converged: bool) -> None:
    """W_hat does not depend on the scale of W, so <W, dW> = 0: fails if sigma is treated as a constant."""
    layer = LAYERS[kind]()
    spectral = reparam(layer)
    if not converged:
        for matrix in spectral.matrices:
            matrix.replicated_r.copy_(torch.nn.functional.normalize(torch.ones_like(matrix.replicated_r), dim=0))
        spectral.refresh()
    gradient = torch.randn(layer.weight.shape, generator=torch.Generator().manual_seed(7))
    layer.weight.grad = gradient.clone()
    spectral.pull_back()
    for matrix in spectral.matrices:
        weight, pulled = layer.weight.detach()[matrix.rows], layer.weight.grad[matrix.rows]
        before = (weight * gradient[matrix.rows]).sum().abs() / (weight.norm() * gradient[matrix.rows].norm())
        after = (weight * pulled).sum().abs() / (weight.norm() * pulled.norm())
        assert after < 1e-6 < 1e-4 < before


def test_gamma_one_divides_by_sigma_and_gamma_sigma_changes_nothing() -> None:
    layer = LAYERS["column"]()
    reparam(layer)
    for rows in (slice(0, 64), slice(64, 96)):
        assert abs(torch.linalg.matrix_norm(layer.effective[rows], 2).item() - 1) < 1e-5
    layer = LAYERS["column"]()
    reparam(layer, gamma_init="sigma")
    torch.testing.assert_close(layer.effective, layer.weight.detach(), rtol=1e-6, atol=1e-8)


def test_a_zero_matrix_is_refused_at_the_start() -> None:
    layer = LAYERS["row"]()
    with torch.no_grad():
        layer.weight.zero_()
    with pytest.raises(ConfigError, match=r"model.reparam.kind = sigma: layer starts at zero"):
        reparam(layer)


def test_a_matrix_that_becomes_zero_keeps_its_vectors_and_stays_finite() -> None:
    layer = LAYERS["row"]()
    spectral = reparam(layer)
    before = layer.replicated.clone()
    with torch.no_grad():
        layer.weight.zero_()
    spectral.refresh()
    assert torch.equal(layer.replicated, before)
    assert torch.equal(layer.effective, torch.zeros_like(layer.effective))
    assert layer.sigma.isfinite().all() and layer.split.isfinite().all()


def test_padded_vocabulary_rows_are_zero_and_stay_zero() -> None:
    cfg = config(1, model={"reparam": {"kind": "sigma"}})
    spawn(1, _check_padding, cfg)


def _check_padding(cfg) -> None:  # type: ignore[no-untyped-def]
    topology = topologies.start(cfg.parallel, "cpu")
    trainer = build_trainer(cfg, topology, VOCAB)
    batches = Batches(RandomSamples(16), 8, topology)
    for step in range(3):
        with trainer.engine.accumulate():
            trainer.pipeline.train(*batches.step(step))
            trainer.spectral.pull_back()
        update(trainer, cfg)
        trainer.spectral.refresh()
    weights = dict(trainer.named_parameters())
    for name in ("head.weight", "embedding.weight"):
        assert weights[name].shape[0] == 64 > VOCAB
        assert not weights[name][VOCAB:].any(), name
        assert weights[name][:VOCAB].any()


def test_recompute_is_bit_equal_and_micro_batches_add_up() -> None:
    """The in-forward layers of others change u at every call: wrong under recompute and accumulation."""
    base = config(1, model={"reparam": {"kind": "sigma"}})
    recomputed = config(1, model={"reparam": {"kind": "sigma"}}, training={"recompute": "full"})
    split = config(1, model={"reparam": {"kind": "sigma"}}, training={"micro_batch_size": 2})
    plain, again, parts = (spawn(1, _gradients, cfg)[0] for cfg in (base, recomputed, split))
    for name, gradient in plain.items():
        assert torch.equal(gradient, again[name]), name
        assert (parts[name] - gradient).norm() <= 1e-5 * gradient.norm() + 1e-7, name


def _gradients(cfg) -> dict[str, Tensor]:  # type: ignore[no-untyped-def]
    topology = topologies.start(cfg.parallel, "cpu")
    trainer = build_trainer(cfg, topology, VOCAB)
    trainer.pipeline.train(*Batches(RandomSamples(16), 8, topology).step(0))
    trainer.spectral.pull_back()
    return {name: p.grad.clone() for name, p in trainer.named_parameters()}  # type: ignore[union-attr]


class CollectiveCounter(TorchDispatchMode):
    """Counts c10d operations as they are dispatched."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        if func.namespace == "c10d":
            self.counts[func._schema.name.removeprefix("c10d::")] += 1
        return func(*args, **(kwargs or {}))


def _count_collectives(cfg) -> Counter[str]:  # type: ignore[no-untyped-def]
    topology = topologies.start(cfg.parallel, "cpu")
    trainer = build_trainer(cfg, topology, VOCAB)
    batches = Batches(RandomSamples(16), 8, topology)
    counter = CollectiveCounter()
    for step in range(2):
        counter.counts.clear()
        with counter:
            with trainer.engine.accumulate():
                trainer.pipeline.train(*batches.step(step))
                sum_partial_gradients(trainer.parameters(), topology.tensor)
                trainer.spectral.pull_back()
            update(trainer, cfg)
            trainer.spectral.refresh()
    return counter.counts


@pytest.mark.parametrize(
    ("layers", "micro", "sections"),
    [
        (2, 8, {"tp": 2}),
        (4, 8, {"tp": 2}),
        (4, 2, {"tp": 2}),
        (4, 2, {"tp": 2, "sequence_parallel": True}),
        (4, 2, {"tp": 2, "pp": 2, "schedule": "zbv"}),
    ],
)
def test_sigma_adds_two_all_reduces_per_step_whatever_the_depth(layers: int, micro: int, sections: dict) -> None:
    world = sections["tp"] * sections.get("pp", 1)
    counts = {}
    for kind in ("none", "sigma"):
        cfg = config(
            world,
            model={"layers": layers, "norm": "rmsnorm", "reparam": {"kind": kind}},
            parallel=sections,
            training={"micro_batch_size": micro},
        )
        counts[kind] = spawn(world, _count_collectives, cfg)
    for plain, sigma in zip(counts["none"], counts["sigma"], strict=True):
        assert plain["allreduce_"] > 0
        assert sigma - plain == Counter({"allreduce_": 2})
        assert plain - sigma == Counter()


def test_every_linear_is_reparametrised_and_embeddings_are_not() -> None:
    cfg = config(1, model={"reparam": {"kind": "sigma"}, "activation": "swiglu"})
    (chunk,) = build_chunks(cfg, single_topology(), VOCAB)
    reparametrised = {name for name, module in chunk.named_modules() if getattr(module, "gamma", None) is not None}
    parts = ("attention.qkv", "attention.output", "feedforward.gate_up", "feedforward.down")
    assert reparametrised == {"head"} | {f"layers.{i}.{part}" for i in range(4) for part in parts}
