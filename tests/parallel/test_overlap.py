"""Column-parallel layers that sum dX while they compute dW, against the separate functions: in fp32 to the bit.

Shapes: B batch, T sequence, I in-features, O out-features.
"""

from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from parallel.linear import ColumnParallelLinear, LinearSpec
from parallel.topology import TensorParallel
from tests.distributed import spawn
from tests.layouts import VOCAB, config, single_topology
from training.build import build_chunks

I, O, B, T = 24, 16, 3, 8  # noqa: E741


def results(spec: LinearSpec, dtype: torch.dtype, *, needs_x: bool = True) -> dict[str, Tensor | None]:
    layer = ColumnParallelLinear("layer", I, {"a": O, "b": O}, spec, std=0.5)
    if layer.effective is not None:
        layer.effective.copy_(0.7 * layer.weight)
    x = _random(1, B, T, I).to(dtype)
    x = x[:, spec.tp.share(T)].clone() if spec.tp.sequence_parallel else x
    x.requires_grad_(needs_x)
    y = layer(x)
    y.backward(_random(2, *y.shape).to(dtype))
    bias_grad = None if layer.bias is None else layer.bias.grad
    return {"y": y.detach(), "dx": x.grad, "dW": layer.weight.grad, "db": bias_grad}


def on_rank(dtype: torch.dtype, sequence_parallel: bool) -> None:
    tp = TensorParallel(dist.group.WORLD, dist.get_rank(), dist.get_world_size(), sequence_parallel)
    for reparametrised in (False, True):
        apart = LinearSpec(tp, 5, compute_dtype=dtype, reparametrised=reparametrised, bias=True)
        for needs_x in (True, False):
            expected = results(apart, dtype, needs_x=needs_x)
            actual = results(replace(apart, overlap=True), dtype, needs_x=needs_x)
            for name, value in expected.items():
                assert (value is None) == (actual[name] is None), name
                # On CPUs bf16 products are rounded to bf16 either way.
                assert value is None or torch.equal(actual[name], value), name  # type: ignore[arg-type]


class _Order(TorchDispatchMode):
    """Products and collectives in the order they begin."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        if name in ("mm", "all_reduce", "reduce_scatter_tensor", "wait_tensor"):
            self.seen.append(name)
        return func(*args, **(kwargs or {}))


def order_on_rank(sequence_parallel: bool) -> list[str]:
    tp = TensorParallel(dist.group.WORLD, dist.get_rank(), dist.get_world_size(), sequence_parallel)
    layer = ColumnParallelLinear("layer", I, {"a": O}, LinearSpec(tp, 5, overlap=True), std=0.5)
    y = layer(_random(1, B, T // 2 if sequence_parallel else T, I).requires_grad_())
    with _Order() as order:
        y.backward(torch.ones_like(y))
    return order.seen


def _random(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("sequence_parallel", [False, True])
def test_overlap_changes_no_bit(dtype: torch.dtype, sequence_parallel: bool) -> None:
    spawn(2, on_rank, dtype, sequence_parallel)


@pytest.mark.parametrize(("sequence_parallel", "begins"), [(False, "all_reduce"), (True, "reduce_scatter_tensor")])
def test_the_sum_begins_before_dw_and_is_waited_for_after(sequence_parallel: bool, begins: str) -> None:
    assert spawn(2, order_on_rank, sequence_parallel)[0] == ["mm", begins, "mm", "wait_tensor"]


@pytest.mark.parametrize(
    ("parallel", "overlaps"),
    [({"tp": 2}, True), ({"tp": 2, "pp": 2}, True), ({"tp": 2, "pp": 2, "schedule": "zbv"}, False), ({}, False)],
)
def test_layers_overlap_where_dx_and_dw_are_computed_together(parallel: dict, overlaps: bool) -> None:
    cfg = config(4, parallel=parallel)
    topology = replace(single_topology(), tensor=TensorParallel(None, 0, cfg.parallel.tp), pp_size=cfg.parallel.pp)
    layers = [m for chunk in build_chunks(cfg, topology, VOCAB) for m in chunk.modules()]
    assert {m.overlap for m in layers if isinstance(m, ColumnParallelLinear)} == {overlaps}
