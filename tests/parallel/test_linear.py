"""Sharded layers in float64 against autograd through the in-forward formula, to 1e-9.

Shapes: B batch, T sequence, I in-features, O out-features.
"""

from dataclasses import replace

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from configs.schema import ReparamConfig
from parallel.linear import ColumnParallelLinear, LinearSpec, RowParallelLinear
from parallel.spectral import SpectralReparam
from parallel.topology import TensorParallel
from tests.distributed import spawn

I, O, B, T = 24, 16, 3, 8  # noqa: E741
GROUPINGS = {"separate": (("a",), ("b",)), "together": (("a", "b"),)}
DENSE = LinearSpec(TensorParallel(), seed=5, master_dtype=torch.float64, compute_dtype=torch.float64)


def reference(weights: list[Tensor], vectors: list[tuple[Tensor, Tensor]], gammas: list[float]) -> dict[str, Tensor]:
    """Output and gradients of y = x [gamma_k W_k / (v_kᵀ W_k u_k)]ᵀ by autograd, u and v held constant."""
    x = batch().requires_grad_()
    leaves = [w.clone().requires_grad_() for w in weights]
    scales = [torch.tensor(gamma, dtype=torch.float64, requires_grad=True) for gamma in gammas]
    effective = [g / (v @ w @ u) * w for w, g, (v, u) in zip(leaves, scales, vectors, strict=True)]
    y = x @ torch.cat(effective).T
    (y * cotangent(y.shape)).sum().backward()
    grads = torch.cat([leaf.grad for leaf in leaves])  # type: ignore[misc]
    return {"y": y.detach(), "dx": x.grad, "dW": grads, "dgamma": torch.stack([s.grad for s in scales])}  # type: ignore[dict-item, misc]


def batch() -> Tensor:
    return torch.randn(B, T, I, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def cotangent(shape: torch.Size) -> Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(2))


def unconverged(spectral: SpectralReparam) -> None:
    """Two iterations from random vectors: the gradient must be right long before sigma is."""
    for matrix in spectral.matrices:
        start = torch.randn(matrix.replicated_r.shape, generator=torch.Generator().manual_seed(3))
        matrix.replicated_r.copy_((start / start.norm()).double())
    spectral.refresh()
    spectral.refresh()


def column(tp: TensorParallel, grouping: str) -> dict[str, Tensor]:
    """A column-parallel layer of two blocks on this rank, its results gathered whole."""
    spec = replace(DENSE, tp=tp, reparametrised=True)
    blocks = {"a": O, "b": 2 * O}
    layer = ColumnParallelLinear("layer", I, blocks, spec, std=0.5, matrices=GROUPINGS[grouping])
    spectral = SpectralReparam([("layer", layer)], tp)
    unconverged(spectral)
    assert layer.gamma is not None
    with torch.no_grad():
        layer.gamma.copy_(torch.tensor([1.7, 0.6], dtype=torch.float64)[: len(layer.gamma)])
    spectral.refresh()
    full_x = batch()
    x = (full_x[:, tp.share(T)] if tp.sequence_parallel else full_x).clone().requires_grad_()
    y = layer(x)
    full_cotangent = cotangent(torch.Size([B, T, 3 * O]))
    mine = [full_cotangent[..., :O][..., tp.share(O)], full_cotangent[..., O:][..., tp.share(2 * O)]]
    (y * torch.cat(mine, -1)).sum().backward()
    spectral.pull_back()
    sizes = list(layer.blocks.values())
    assert x.grad is not None and layer.weight.grad is not None and layer.gamma.grad is not None
    return {
        "W": blocks_whole(layer.weight.detach(), sizes, 0, tp),
        "y": blocks_whole(y.detach(), sizes, -1, tp),
        "dx": whole(x.grad, 1, tp) if tp.sequence_parallel else x.grad,
        "dW": blocks_whole(layer.weight.grad, sizes, 0, tp),
        "dgamma": layer.gamma.grad,
        "u": layer.replicated,
    }


def row(tp: TensorParallel) -> dict[str, Tensor]:
    """A row-parallel layer on this rank, its results gathered whole."""
    spec = replace(DENSE, tp=tp, reparametrised=True)
    layer = RowParallelLinear("layer", I, O, spec, std=0.5)
    spectral = SpectralReparam([("layer", layer)], tp)
    unconverged(spectral)
    assert layer.gamma is not None
    with torch.no_grad():
        layer.gamma.fill_(1.7)
    spectral.refresh()
    x = batch()[..., tp.share(I)].clone().requires_grad_()
    y = layer(x)
    full_cotangent = cotangent(torch.Size([B, T, O]))
    (y * (full_cotangent[:, tp.share(T)] if tp.sequence_parallel else full_cotangent)).sum().backward()
    spectral.pull_back()
    assert x.grad is not None and layer.weight.grad is not None and layer.gamma.grad is not None
    return {
        "W": whole(layer.weight.detach(), 1, tp),
        "y": whole(y.detach(), 1, tp) if tp.sequence_parallel else y.detach(),
        "dx": whole(x.grad, -1, tp),
        "dW": whole(layer.weight.grad, 1, tp),
        "dgamma": layer.gamma.grad,
        "v": layer.replicated,
    }


def whole(shard: Tensor, dim: int, tp: TensorParallel) -> Tensor:
    if tp.size == 1:
        return shard
    shards = [torch.empty_like(shard) for _ in range(tp.size)]
    dist.all_gather(shards, shard.contiguous(), group=tp.group)
    return torch.cat(shards, dim)


def blocks_whole(shard: Tensor, sizes: list[int], dim: int, tp: TensorParallel) -> Tensor:
    return torch.cat([whole(part.contiguous(), dim, tp) for part in shard.split(sizes, dim)], dim)


def on_rank(kind: str, grouping: str, sequence_parallel: bool) -> dict[str, Tensor]:
    tp = TensorParallel(dist.group.WORLD, dist.get_rank(), dist.get_world_size(), sequence_parallel)
    return column(tp, grouping) if kind == "column" else row(tp)


@pytest.mark.parametrize("grouping", GROUPINGS)
@pytest.mark.parametrize(("tp", "sequence_parallel"), [(1, False), (2, False), (4, False), (2, True), (4, True)])
def test_column_parallel_equals_autograd(tp: int, sequence_parallel: bool, grouping: str) -> None:
    ours = (
        column(TensorParallel(), grouping) if tp == 1 else spawn(tp, on_rank, "column", grouping, sequence_parallel)[0]
    )
    weights = [ours["W"]] if grouping == "together" else [ours["W"][:O], ours["W"][O:]]
    vectors = [(unit(w @ u0), u) for w, u, u0 in zip(weights, ours["u"], previous(weights, "column"), strict=True)]
    expected = reference(weights, vectors, [1.7, 0.6][: len(weights)])
    for name, value in expected.items():
        torch.testing.assert_close(ours[name], value, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(("tp", "sequence_parallel"), [(1, False), (2, False), (4, False), (2, True), (4, True)])
def test_row_parallel_equals_autograd(tp: int, sequence_parallel: bool) -> None:
    ours = row(TensorParallel()) if tp == 1 else spawn(tp, on_rank, "row", "separate", sequence_parallel)[0]
    (v0,) = previous([ours["W"]], "row")
    expected = reference([ours["W"]], [(ours["v"][0], unit(ours["W"].T @ v0))], [1.7])
    for name, value in expected.items():
        torch.testing.assert_close(ours[name], value, rtol=1e-9, atol=1e-9)


def previous(weights: list[Tensor], kind: str) -> list[Tensor]:
    """The replicated vector before the last of the three iterations, iterated here by hand."""
    vectors = []
    for weight in weights:
        w = weight if kind == "column" else weight.T
        start = torch.randn(w.shape[1], generator=torch.Generator().manual_seed(3))
        vector = (start / start.norm()).double()
        for _ in range(2):
            vector = unit(w.T @ unit(w @ vector))
        vectors.append(vector)
    return vectors


def unit(vector: Tensor) -> Tensor:
    return vector / vector.norm()


def test_bf16_weights_are_cast_once_and_gradients_stay_fp32() -> None:
    spec = LinearSpec(TensorParallel(), seed=0, compute_dtype=torch.bfloat16)
    layer = ColumnParallelLinear("layer", I, {"a": O}, spec, std=0.5)
    SpectralReparam([("layer", layer)], spec.tp).start(ReparamConfig(), seed=0)
    assert layer.effective is not None
    assert torch.equal(layer.effective, layer.weight.detach().bfloat16())
    y = layer(batch().bfloat16())
    y.sum().backward()
    assert y.dtype == torch.bfloat16
    assert layer.weight.grad is not None and layer.weight.grad.dtype == torch.float32
