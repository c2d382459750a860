"""Tensor-parallel linear layers whose weight is already the effective one.

Between two optimizer steps a reparametrised layer is an ordinary linear layer: its forward uses `effective`, which
`SpectralReparam.refresh` writes once per step, and its backward leaves dL/dW_hat in `weight.grad`, which
`SpectralReparam.pull_back` turns into dL/dW and dL/dgamma. A plain layer is the same thing with W_hat = W.

Shapes: I in-features, O out-features, O_r and I_r this rank's share of them, K matrices packed in one weight.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from parallel.overlap import OverlappedProduct
from parallel.regions import enter, leave
from parallel.seeds import seed_for, truncated_normal
from parallel.sharding import Sharding
from parallel.topology import TensorParallel


@dataclass(frozen=True)
class LinearSpec:
    """What all linears of a model share."""

    tp: TensorParallel
    seed: int
    compute_dtype: torch.dtype = torch.float32
    master_dtype: torch.dtype = torch.float32
    reparametrised: bool = False
    bias: bool = False
    overlap: bool = False
    """Add up dX over tensor-parallel ranks while dW is computed: not for schedules that compute the two apart."""
    drawn: bool = True
    """Draw the initial weights; else they hold nothing yet: for who fills every one of them."""

    def initial(self, name: str, shape: tuple[int, int], std: float) -> Tensor:
        """A whole weight or table before training, drawn from a seed of its own name."""
        if not self.drawn:
            return torch.empty(shape, dtype=self.master_dtype)
        return truncated_normal(shape, std, seed_for(self.seed, "init", name), self.master_dtype)


class _StraightThrough(torch.autograd.Function):
    """Use W_hat in the forward pass; hand its gradient to W, in W's precision, in the backward pass."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor, effective: Tensor) -> Tensor:
        ctx.dtype = weight.dtype
        return effective.view_as(effective)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return grad.to(ctx.dtype), None


class ShardedLinear(nn.Module):
    """The state common to column- and row-parallel layers; `split_dim` says which side of W the ranks share.

    `weight` is this rank's part of W and belongs to the optimizer; `gamma` (K,) scales each packed matrix;
    `effective` is W_hat in the compute dtype; `replicated` and `split` are the singular vectors of each matrix on the
    side every rank holds whole and on the side the ranks share; `sigma` (K,) is the spectral norm they imply. In a
    plain layer only monitoring uses these three: `replicated` is zero until the first measurement.
    """

    split_dim: int
    replicated: Tensor
    split: Tensor
    sigma: Tensor
    effective: Tensor | None

    def __init__(self, weight: Tensor, rows: dict[str, int], spec: LinearSpec) -> None:
        """`rows`: the matrices packed in `weight` and how many of this rank's rows each takes."""
        super().__init__()
        assert sum(rows.values()) == weight.shape[0]
        self.rows = rows
        self.tp = spec.tp
        self.overlap = spec.overlap and spec.tp.size > 1
        self.reparametrised = spec.reparametrised
        self.weight = shard_parameter(nn.Parameter(weight), Sharding(self.split_dim, self._blocks()))
        self.gamma: nn.Parameter | None = None
        if spec.reparametrised:
            self.gamma = replicate_parameter(nn.Parameter(weight.new_ones(len(rows))), spec.tp)
        kept, shared = (weight.shape[1], weight.shape[0]) if self.split_dim == 0 else weight.shape
        self.register_buffer("replicated", weight.new_zeros(len(rows), kept))
        self.register_buffer("split", weight.new_zeros(shared))
        self.register_buffer("sigma", weight.new_ones(len(rows)))
        needs_copy = spec.reparametrised or spec.compute_dtype != weight.dtype
        self.register_buffer("effective", weight.to(spec.compute_dtype).clone() if needs_copy else None, False)

    def _blocks(self) -> tuple[tuple[str, int], ...]:
        """The projections stacked along the dimension that ranks share."""
        return ()

    def spectral_state(self) -> Iterator[tuple[str, Tensor, Sharding]]:
        """(name, tensor, sharding) of u, v and sigma: what a resumed run needs besides the parameters.

        A plain layer's next measurement goes on from `replicated` alone.
        """
        yield "replicated", self.replicated, Sharding()
        if self.reparametrised:
            yield "split", self.split, Sharding(0, self._blocks())
            yield "sigma", self.sigma, Sharding()

    def effective_weight(self) -> Tensor:
        """W_hat for this forward pass, differentiable with respect to `weight` (straight through)."""
        if self.effective is None:
            return self.weight
        return _StraightThrough.apply(self.weight, self.effective)


class ColumnParallelLinear(ShardedLinear):
    """y = x W_hatᵀ with the rows of W shared by tensor-parallel ranks.

    Shapes: x (B, T, I), or (B, T / tp, I) under sequence parallelism; y (B, T, O_r). `blocks` names the projections
    stacked in W and their out-features; each rank holds its share of every block. `matrices` groups neighbouring
    blocks that share one spectral norm and one gamma; default: each block is a matrix of its own.
    Source: Zhai et al. 2023, eq. 2; Shoeybi et al. 2019, section 3.
    """

    split_dim = 0

    def __init__(
        self,
        name: str,
        in_features: int,
        blocks: dict[str, int],
        spec: LinearSpec,
        *,
        std: float | Mapping[str, float],
        matrices: Sequence[Sequence[str]] | None = None,
        live_rows: int | None = None,
    ) -> None:
        """`std` of the initial weights: one for all blocks, or one for each. `live_rows`: rows of W beyond this one
        start (and stay) at zero: the padding of a vocabulary.
        """
        matrices = matrices or [[block] for block in blocks]
        assert [block for matrix in matrices for block in matrix] == list(blocks)
        stds = std if isinstance(std, Mapping) else dict.fromkeys(blocks, std)
        parts = {}
        for block, out_features in blocks.items():
            full_OI = spec.initial(f"{name}.{block}", (out_features, in_features), stds[block])
            if live_rows is not None:
                full_OI[live_rows:] = 0
            parts[block] = full_OI[spec.tp.share(out_features)]
        rows = {"".join(matrix): sum(parts[block].shape[0] for block in matrix) for matrix in matrices}
        self.blocks = {block: part.shape[0] for block, part in parts.items()}
        super().__init__(torch.cat(list(parts.values())), rows, spec)
        self.bias = None
        if spec.bias:
            bias = nn.Parameter(self.weight.new_zeros(self.weight.shape[0]))
            self.bias = shard_parameter(bias, Sharding(0, self._blocks()))

    def _blocks(self) -> tuple[tuple[str, int], ...]:
        return tuple(self.blocks.items())

    def forward(self, x_BTI: Tensor) -> Tensor:
        bias = None if self.bias is None else self.bias.to(x_BTI.dtype)
        if self.overlap:
            effective = self.weight if self.effective is None else self.effective
            return OverlappedProduct.apply(x_BTI, self.weight, effective, bias, self.tp)
        return F.linear(enter(x_BTI, self.tp), self.effective_weight(), bias)


class RowParallelLinear(ShardedLinear):
    """y = x W_hatᵀ with the columns of W shared by tensor-parallel ranks; closes what a column-parallel layer opened.

    Shapes: x (B, T, I_r); y (B, T, O), or (B, T / tp, O) under sequence parallelism.
    Source: Zhai et al. 2023, eq. 2; Shoeybi et al. 2019, section 3.
    """

    split_dim = 1

    def __init__(self, name: str, in_features: int, out_features: int, spec: LinearSpec, *, std: float) -> None:
        full_OI = spec.initial(name, (out_features, in_features), std)
        super().__init__(full_OI[:, spec.tp.share(in_features)].contiguous(), {"": out_features}, spec)
        self.bias = None
        if spec.bias:
            bias = nn.Parameter(self.weight.new_zeros(out_features))
            self.bias = replicate_parameter(bias, spec.tp, partial=spec.tp.sequence_parallel)

    def forward(self, x_BTI: Tensor) -> Tensor:
        y_BTO = leave(F.linear(x_BTI, self.effective_weight()), self.tp)
        return y_BTO if self.bias is None else y_BTO + self.bias.to(y_BTO.dtype)


def shard_parameter(parameter: nn.Parameter, sharding: Sharding) -> nn.Parameter:
    """Mark a parameter of which each tensor-parallel rank holds its own part."""
    parameter.model_parallel = True  # type: ignore[attr-defined]  # DeepSpeed's name: count this rank's norm
    parameter.sharding = sharding  # type: ignore[attr-defined]
    return parameter


def replicate_parameter(parameter: nn.Parameter, tp: TensorParallel, *, partial: bool = False) -> nn.Parameter:
    """Mark a parameter that every tensor-parallel rank holds whole.

    `partial`: each rank sees only some of the tokens or heads it acts on, so its gradient is one term of a sum.
    """
    parameter.sharding = Sharding()  # type: ignore[attr-defined]
    parameter.model_parallel = tp.rank == 0  # type: ignore[attr-defined]  # the global norm counts it once
    parameter.tp_partial = partial and tp.size > 1  # type: ignore[attr-defined]
    return parameter
