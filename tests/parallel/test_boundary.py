"""What the step boundary asks of a machine: few operations however many matrices, nothing made of the size of W."""

from collections import Counter

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from configs.schema import ReparamConfig
from parallel.boundary import PortableBoundary, boundary_of, scale_into
from parallel.linear import ColumnParallelLinear, LinearSpec, RowParallelLinear, ShardedLinear
from parallel.matrices import MatrixStack, Segments
from parallel.spectral import SpectralReparam
from parallel.topology import TensorParallel

WIDTH = 96
PER_MATRIX = {"mv", "dot", "addr", "mul"}
"""Two products, c, the pull-back and W_hat."""


class Operations(TorchDispatchMode):
    """Counts operations that compute, and remembers the largest tensor that one made (not a view, not `out=`)."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()
        self.largest = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        result = func(*args, **(kwargs or {}))
        given = {
            t.untyped_storage().data_ptr() for t in (*args, *(kwargs or {}).values()) if isinstance(t, torch.Tensor)
        }
        if isinstance(result, torch.Tensor) and result.untyped_storage().data_ptr() not in given:
            self.largest = max(self.largest, result.numel())
        if not func.is_view:
            self.counts[func._schema.name.removeprefix("aten::")] += 1
        return result


def _boundary_operations(blocks: int) -> Operations:
    spec = LinearSpec(TensorParallel(), seed=0, reparametrised=True)
    layers: list[tuple[str, ShardedLinear]] = []
    for index in range(blocks):
        layers.append((f"{index}.qkv", ColumnParallelLinear(f"{index}.qkv", WIDTH, {"q": 96, "k": 64}, spec, std=0.1)))
        layers.append((f"{index}.down", RowParallelLinear(f"{index}.down", 160, WIDTH, spec, std=0.1)))
    spectral = SpectralReparam(layers, spec.tp)
    spectral.start(ReparamConfig(start="power"), seed=0)
    for _, layer in layers:
        layer.weight.grad = torch.ones_like(layer.weight)
    with Operations() as operations:
        spectral.pull_back()
        spectral.refresh()
    return operations


def test_only_what_reads_or_writes_whole_matrices_is_done_once_for_each() -> None:
    one, four = _boundary_operations(1), _boundary_operations(4)
    grown = four.counts - one.counts
    # `mul` is the write of W_hat; the rest of the algebra is done for all matrices together.
    assert grown == Counter({"mv": 2 * 9, "dot": 9, "addr": 9, "mul": 9})
    assert set(grown) == PER_MATRIX


def test_nothing_of_the_size_of_a_matrix_is_made() -> None:
    operations = _boundary_operations(1)
    vectors = (96 + 64 + 96) + (160 + WIDTH) * 2  # all replicated and split sides of one block, roughly
    assert 0 < operations.largest <= vectors < 64 * WIDTH


def test_casting_to_bf16_makes_no_copy_of_the_matrix_and_rounds_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("parallel.boundary.CAST_BLOCK", 1000)
    weight, scale = torch.randn(70, 130, generator=torch.Generator().manual_seed(0)), torch.tensor(1.7)
    out = torch.empty(70, 130, dtype=torch.bfloat16)
    with Operations() as operations:
        scale_into(out, weight, scale)
    assert operations.counts["mul"] == 10  # 7 rows of 130 are no more than 1,000 numbers
    assert torch.equal(out, (weight * scale).bfloat16())


def test_buffers_of_layers_are_views_that_loading_writes_through() -> None:
    spec = LinearSpec(TensorParallel(), seed=0, reparametrised=True)
    layer = ColumnParallelLinear("layer", WIDTH, {"q": 96, "k": 64}, spec, std=0.1)
    stack = MatrixStack([("layer", layer)])
    state = {name: tensor for name, tensor, _ in layer.spectral_state()}
    assert {name: tuple(tensor.shape) for name, tensor in state.items()} == {
        "replicated": (2, WIDTH),
        "split": (160,),
        "sigma": (2,),
    }
    for name, flat in (("replicated", stack.replicated_R), ("split", stack.split_S), ("sigma", stack.sigma_M)):
        state[name].fill_(3)
        assert (flat == 3).all(), name
    assert set(dict(layer.named_buffers())) >= set(state)


def test_segments_add_up_and_spread() -> None:
    segments = Segments([3, 1, 2], torch.device("cpu"))
    values = torch.arange(6.0)
    assert segments.sums(values).tolist() == [3.0, 3.0, 9.0]
    assert segments.spread(torch.tensor([1.0, 2.0, 3.0])).tolist() == [1.0, 1.0, 1.0, 2.0, 3.0, 3.0]
    assert [view.tolist() for view in segments.views(values)] == [[0, 1, 2], [3], [4, 5]]


def test_matrices_of_a_cpu_take_the_portable_way() -> None:
    layer = RowParallelLinear("layer", 160, WIDTH, LinearSpec(TensorParallel(), seed=0), std=0.1)
    assert isinstance(boundary_of(MatrixStack([("layer", layer)])), PortableBoundary)
