"""What is decayed, and which AdamW is taken."""

import sys
from types import ModuleType

import pytest
import torch

from configs.schema import OptimizerConfig
from tests.layouts import VOCAB, config, single_topology
from training.build import build_chunks
from training.optimizer import apex_fused_adam, build_optimizer


def test_gamma_norms_and_biases_are_not_decayed() -> None:
    cfg = config(1, model={"bias": True, "qk_norm": True, "reparam": {"kind": "sigma"}})
    (chunk,) = build_chunks(cfg, single_topology(), VOCAB)
    names = {id(p): name for name, p in chunk.named_parameters()}
    optimizer = build_optimizer(chunk.named_parameters(), OptimizerConfig(weight_decay=0.1), torch.device("cpu"), VOCAB)
    decayed, free = ({names[id(p)] for p in group["params"]} for group in optimizer.param_groups)
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.1, 0.0]
    assert decayed | free == set(names.values())
    assert {name.split(".")[-1] for name in decayed} == {"weight"} and not any("norm" in name for name in decayed)
    assert all(name.endswith((".gamma", ".bias")) or "norm" in name for name in free)


def test_the_package_called_apex_on_pypi_is_not_nvidias(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "apex", ModuleType("apex"))
    assert apex_fused_adam() is None


def test_nvidias_apex_is_taken_where_its_kernels_are(monkeypatch: pytest.MonkeyPatch) -> None:
    apex, optimizers = ModuleType("apex"), ModuleType("apex.optimizers")
    optimizers.FusedAdam = object  # type: ignore[attr-defined]
    for name, module in {"apex": apex, "apex.optimizers": optimizers, "amp_C": ModuleType("amp_C")}.items():
        monkeypatch.setitem(sys.modules, name, module)
    assert apex_fused_adam() is object


def test_torchs_fused_adamw_is_taken_and_equals_its_plain_loop() -> None:
    """In fp32 up to the order of operations: after 20 steps to 1e-6 of a weight, or of a step."""
    weights = [torch.nn.Parameter(torch.randn(40, 30, generator=torch.Generator().manual_seed(0))) for _ in range(2)]
    config = OptimizerConfig(lr=1e-2)
    ours = build_optimizer([("w", weights[0])], config, torch.device("cpu"), VOCAB)
    assert ours.param_groups[0]["fused"]
    plain = torch.optim.AdamW(
        [weights[1]], config.lr, config.betas, config.eps, config.weight_decay, foreach=False, fused=False
    )
    generator = torch.Generator().manual_seed(1)
    for _ in range(20):
        gradient = torch.randn(40, 30, generator=generator)
        for weight, optimizer in zip(weights, (ours, plain), strict=True):
            weight.grad = gradient.clone()
            optimizer.step()
    torch.testing.assert_close(weights[0], weights[1], rtol=1e-6, atol=1e-6 * config.lr)
