"""The linears of decoder blocks, reparametrised in four ways, each with a whole training step.

    plain            W as it is
    ours             W_hat written at the step boundary (`parallel.spectral`)
    in-forward       W_hat made in every forward after one power iteration, gradient through sigma: Apple's layer
    spectral_norm    torch's parametrisation of the same name, and a gamma

A block is qkv, output, up and down of width d (d -> 3d, d -> d, d -> 4d, 4d -> d) with nothing between them but sums
and a GELU: no attention, norm or vocabulary takes time in which the cost of a reparametrisation could hide. Ours keeps
a norm each of q, k and v, as it does by default; the other two have one of the fused matrix, which costs them less.

Over two tensor-parallel ranks every linear is sharded in the same way. The two layers that know no ranks then normalise
each shard by its own norm: another model, but no slower than a right one, which would have to communicate.

Shapes: B batch, T sequence, D width, O out-features, I in-features.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.parametrizations import spectral_norm
from torch.nn.utils.parametrize import register_parametrization

from configs.schema import ReparamConfig
from parallel.linear import ColumnParallelLinear, LinearSpec, RowParallelLinear, ShardedLinear
from parallel.regions import enter, leave
from parallel.spectral import SpectralReparam
from parallel.topology import TensorParallel

VARIANTS = ("plain", "ours", "in-forward", "spectral_norm")
STD = 0.02
START_ITERATIONS = 20

MakeLinear = Callable[[str, int, dict[str, int], bool], nn.Module]
"""(name, in-features, blocks of out-features, whether ranks share the out-features) -> a linear."""


class InForwardLinear(nn.Module):
    """y = x W_hatᵀ with W_hat = (gamma / sigma) W made anew in each forward, as apple/ml-sigma-reparam's layer does.

    u, v take one power iteration per training forward and are constants of the graph; sigma = vᵀ W u is not. They start
    from some iterations, where Apple's start by SVD: only the time of a step is of interest here.
    Source: Zhai et al. 2023, eq. 2; written from the formula.
    """

    u_I: Tensor
    v_O: Tensor

    def __init__(self, weight_OI: Tensor) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight_OI)
        self.gamma = nn.Parameter(torch.ones(1))
        self.register_buffer("u_I", torch.randn(weight_OI.shape[1]))
        self.register_buffer("v_O", torch.zeros(weight_OI.shape[0]))
        for _ in range(START_ITERATIONS):
            self._iterate()

    @torch.no_grad()
    def _iterate(self) -> None:
        self.v_O = F.normalize(self.weight @ self.u_I, dim=0)
        self.u_I = F.normalize(self.weight.T @ self.v_O, dim=0)

    def forward(self, x_BTI: Tensor) -> Tensor:
        self._iterate()
        sigma = self.v_O @ (self.weight @ self.u_I)
        return F.linear(x_BTI, (self.gamma / sigma) * self.weight)


class Scale(nn.Module):
    """A parametrisation: gamma times the weight."""

    def __init__(self) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(1))

    def forward(self, weight_OI: Tensor) -> Tensor:
        return self.gamma * weight_OI


def spectral_norm_linear(weight_OI: Tensor) -> nn.Module:
    """PyTorch's spectral_norm of a linear, times a gamma: the nearest that stock PyTorch has."""
    linear = nn.Linear(weight_OI.shape[1], weight_OI.shape[0], bias=False)
    with torch.no_grad():
        linear.weight.copy_(weight_OI)
    return register_parametrization(spectral_norm(linear), "weight", Scale())


class Sharded(nn.Module):
    """A linear that knows no ranks between the two communications of tensor parallelism."""

    def __init__(self, linear: nn.Module, tp: TensorParallel, column: bool) -> None:
        super().__init__()
        self.linear = linear
        self.tp = tp
        self.column = column

    def forward(self, x_BTI: Tensor) -> Tensor:
        if self.column:
            return self.linear(enter(x_BTI, self.tp))
        return leave(self.linear(x_BTI), self.tp)


class Block(nn.Module):
    """The linears of one decoder block."""

    def __init__(self, name: str, width: int, make: MakeLinear) -> None:
        super().__init__()
        self.qkv = make(f"{name}.qkv", width, dict.fromkeys("qkv", width), True)
        self.output = make(f"{name}.output", width, {"": width}, False)
        self.up = make(f"{name}.up", width, {"up": 4 * width}, True)
        self.down = make(f"{name}.down", 4 * width, {"": width}, False)

    def forward(self, x_BTD: Tensor) -> Tensor:
        q_BTD, k_BTD, v_BTD = self.qkv(x_BTD).chunk(3, dim=-1)
        x_BTD = x_BTD + self.output(q_BTD + k_BTD + v_BTD)
        return x_BTD + self.down(F.gelu(self.up(x_BTD)))


class Bench:
    """Blocks of one variant, and their training step on random tokens."""

    def __init__(self, variant: str, width: int, blocks: int, tp: TensorParallel) -> None:
        self.spec = LinearSpec(tp, seed=0, reparametrised=variant == "ours")
        self.variant = variant
        self.blocks = nn.ModuleList(Block(str(index), width, self._make) for index in range(blocks))
        self.spectral = self._spectral()
        self.optimizer = torch.optim.AdamW(self.blocks.parameters(), lr=1e-4, fused=True)

    def _make(self, name: str, in_features: int, blocks: dict[str, int], column: bool) -> nn.Module:
        made: ShardedLinear
        if column:
            made = ColumnParallelLinear(name, in_features, blocks, self.spec, std=STD)
        else:
            made = RowParallelLinear(name, in_features, sum(blocks.values()), self.spec, std=STD)
        if self.variant in ("plain", "ours"):
            return made
        kind = InForwardLinear if self.variant == "in-forward" else spectral_norm_linear
        return Sharded(kind(made.weight.detach().clone()), self.spec.tp, column)

    def _spectral(self) -> SpectralReparam:
        linears = [(name, module) for name, module in self.blocks.named_modules() if isinstance(module, ShardedLinear)]
        spectral = SpectralReparam(linears, self.spec.tp)
        spectral.start(ReparamConfig(start="power", start_iterations=START_ITERATIONS), seed=0)
        return spectral

    def step(self, inputs: Sequence[Tensor]) -> None:
        """Forward and backward of each micro-batch, the step boundary and AdamW."""
        for x_BTD in inputs:
            y_BTD = x_BTD
            for block in self.blocks:
                y_BTD = block(y_BTD)
            (y_BTD.square().mean() / len(inputs)).backward()
        self.spectral.pull_back()
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.spectral.refresh()

    def held(self) -> int:
        """Bytes of parameters, buffers and the optimizer's state; gradients come on top in a step."""
        state = (t for values in self.optimizer.state.values() for t in values.values() if isinstance(t, Tensor))
        tensors = [*self.blocks.parameters(), *self.blocks.buffers(), *state]
        return sum(tensor.untyped_storage().nbytes() for tensor in {t.data_ptr(): t for t in tensors}.values())


def inputs(width: int, tokens: int, micro_batches: int) -> list[Tensor]:
    """The micro-batches of one step, the same on every rank: (1, tokens / micro_batches, width) each."""
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(1, tokens // micro_batches, width, generator=generator) for _ in range(micro_batches)]
