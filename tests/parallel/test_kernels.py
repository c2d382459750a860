"""Triton's step boundary against the portable one: interpreted, and compiled for a GPU that need not be there."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from configs.schema import ReparamConfig
from parallel.boundary import PortableBoundary
from parallel.linear import ColumnParallelLinear, LinearSpec, RowParallelLinear, ShardedLinear
from parallel.matrices import MatrixStack
from parallel.spectral import SpectralReparam
from parallel.topology import TensorParallel
from tests.interpreted import Call, compile_for_hopper, interpreter, run_compiled

SIZES = {"whole": (128, {"q": 64, "k": 32, "v": 32}, 256), "ragged": (131, {"q": 70, "k": 33, "v": 1}, 150)}


@pytest.fixture(scope="module")
def interpreted() -> Iterator[Call]:
    with interpreter() as call:
        yield call


def _layers(size: str, dtype: torch.dtype, compute: torch.dtype) -> list[tuple[str, ShardedLinear]]:
    """A column-parallel layer that packs three matrices and a row-parallel one, with a gradient each."""
    width, blocks, height = SIZES[size]
    spec = LinearSpec(TensorParallel(), seed=0, compute_dtype=compute, master_dtype=dtype, reparametrised=True)
    column = ColumnParallelLinear("column", width, blocks, spec, std=0.1)
    row = RowParallelLinear("row", width, height, spec, std=0.1)
    generator = torch.Generator().manual_seed(1)
    for layer in (column, row):
        layer.weight.grad = torch.randn(layer.weight.shape, generator=generator, dtype=dtype)
    return [("column", column), ("row", row)]


def _both(size: str, dtype: torch.dtype, compute: torch.dtype) -> None:
    """Two equal sets of layers: every move of the kernels on the one equals the portable move on the other."""
    from parallel.kernels.boundary import TritonBoundary

    sets = [_layers(size, dtype, compute) for _ in range(2)]
    for layers in sets:
        SpectralReparam(layers, TensorParallel()).start(ReparamConfig(), seed=0)
    ours, judge = TritonBoundary(MatrixStack(sets[0])), PortableBoundary(MatrixStack(sets[1]))
    close = {"rtol": 1e-5, "atol": 1e-5} if dtype == torch.float32 else {"rtol": 1e-12, "atol": 1e-12}
    w_S = ours.split_products()
    torch.testing.assert_close(w_S, judge.split_products(), **close)
    t_R, expected_R = torch.empty_like(ours.stack.replicated_R), torch.empty_like(ours.stack.replicated_R)
    ours.replicated_products(w_S, t_R)
    judge.replicated_products(w_S, expected_R)
    torch.testing.assert_close(t_R, expected_R, **close)
    c_M = ours.inner_products()
    torch.testing.assert_close(c_M, judge.inner_products(), rtol=close["rtol"], atol=10 * close["atol"])
    scale_M, ratio_M = torch.linspace(0.5, 2, c_M.numel(), dtype=dtype), torch.linspace(-3, 3, c_M.numel(), dtype=dtype)
    for boundary in (ours, judge):
        boundary.pull_back(scale_M, ratio_M)
        boundary.write_effective(scale_M)
    for (_, layer), (_, other) in zip(*sets, strict=True):
        torch.testing.assert_close(layer.weight.grad, other.weight.grad, **close)
        # One product and one rounding make one number, but the interpreter cuts bits off where a GPU rounds to bf16.
        bits = 0 if compute == dtype else 2**-7
        torch.testing.assert_close(layer.effective, other.effective, rtol=bits, atol=0)


@pytest.mark.parametrize(
    ("size", "dtype", "compute"),
    [
        ("whole", torch.float32, torch.float32),
        ("ragged", torch.float32, torch.bfloat16),
        pytest.param("ragged", torch.float64, torch.float64, marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_every_move_equals_the_portable_one(
    interpreted: Call, size: str, dtype: torch.dtype, compute: torch.dtype
) -> None:
    interpreted(_both, size, dtype, compute)


def _steps_in_a_row() -> None:
    """Weights that move in memory are found again, and two runs agree to the bit."""
    from parallel.kernels.boundary import TritonBoundary

    results = []
    for _ in range(2):
        layers = _layers("ragged", torch.float32, torch.float32)
        SpectralReparam(layers, TensorParallel()).start(ReparamConfig(), seed=0)
        boundary = TritonBoundary(MatrixStack(layers))
        before = boundary.split_products()
        for _, layer in layers:
            layer.weight.data = 2 * layer.weight.data
        after = boundary.split_products()
        assert torch.equal(after, 2 * before)
        results.append(torch.cat([after, boundary.inner_products()]))
    assert torch.equal(*results)


def test_weights_may_move_and_every_bit_repeats(interpreted: Call) -> None:
    interpreted(_steps_in_a_row)


@pytest.mark.slow
def test_kernels_compile_for_a_gpu_and_use_no_atomics(tmp_path: Path) -> None:
    run_compiled("tests.parallel.test_kernels", "_compile_all", tmp_path)


def _compile_all() -> None:
    import triton.language as tl

    from parallel.kernels import boundary, programs

    constants = {name: getattr(boundary, name) for name in ("FIELDS", "ROWS", "COLUMNS", "FLAT")}
    constants |= {"ELEMENT": tl.float32, "COMPUTE": tl.bfloat16}
    addresses = {"tasks", "shapes", "weights", "grads", "effectives"}
    for kernel in (programs.multiply, programs.inner, programs.pull, programs.write):
        kinds = {name: "*i64" if name in addresses else "*fp32" for name in kernel.arg_names}
        compiled = compile_for_hopper(kernel, kinds, constants)
        assert compiled.asm["cubin"]
        # Sums in no particular order would break resume to the bit.
        assert not re.search(r"\b(atom|red)\.", compiled.asm["ptx"])
