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
