"""The matrices with a spectral norm that one rank holds, and the vectors of all of them in flat tensors.

A matrix is read as (s, r): s the side the ranks share ("split"), r the side each holds whole ("replicated"). For
column-parallel layers s = out, r = in; for row-parallel layers the transpose.

Shapes: M matrices; R and S all their replicated and split sides, one after the other; I and O in- and out-features.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from parallel.linear import ShardedLinear


@dataclass(frozen=True)
class SpectralMatrix:
    """One matrix with a spectral norm, and where reparametrised a gamma, of its own.

    It is a block of rows of a layer's weight (all of it for row-parallel layers).
    """

    name: str
    layer: ShardedLinear
    index: int
    rows: slice

    def oriented(self, tensor_OI: Tensor) -> Tensor:
        """This matrix's part of a tensor shaped like the layer's weight, as a view of shape (s, r)."""
        block = tensor_OI[self.rows]
        return block if self.layer.split_dim == 0 else block.T

    @property
    def replicated_r(self) -> Tensor:
        return self.layer.replicated[self.index]

    @property
    def split_s(self) -> Tensor:
        return self.layer.split[self.rows] if self.layer.split_dim == 0 else self.layer.split

    @property
    def sigma(self) -> Tensor:
        return self.layer.sigma[self.index]

    @property
    def gamma(self) -> Tensor:
        assert self.layer.gamma is not None
        return self.layer.gamma[self.index]


def matrices_of(name: str, layer: ShardedLinear) -> list[SpectralMatrix]:
    """The matrices packed in a layer's weight, in order."""
    matrices, first = [], 0
    for index, (block, rows) in enumerate(layer.rows.items()):
        label = name if len(layer.rows) == 1 else f"{name}.{block}"
        matrices.append(SpectralMatrix(label, layer, index, slice(first, first + rows)))
        first += rows
    return matrices


class Segments:
    """Vectors of the given lengths, one after the other in a flat tensor; an operation is one for all of them."""

    def __init__(self, lengths: Sequence[int], device: torch.device) -> None:
        self.lengths = list(lengths)
        self._lengths_M = torch.tensor(self.lengths, device=device)
        self._owner_N = torch.arange(len(self.lengths), device=device).repeat_interleave(self._lengths_M)

    def views(self, flat_N: Tensor) -> tuple[Tensor, ...]:
        """Each vector, as a view."""
        return flat_N.split(self.lengths)

    def sums(self, flat_N: Tensor) -> Tensor:
        """(M,): the sum of each vector, added in fp64 and rounded once; the same to the bit every time."""
        # `unsafe` leaves out a check of the lengths that a GPU would have to report to the host.
        sums_M = torch.segment_reduce(flat_N.double(), "sum", lengths=self._lengths_M, unsafe=True)
        return sums_M.to(flat_N.dtype)

    def spread(self, values_M: Tensor) -> Tensor:
        """One value of each vector, repeated for all its elements."""
        return values_M.index_select(0, self._owner_N)


class MatrixStack:
    """The matrices of some layers, with `replicated`, `split` and `sigma` of all layers in one flat tensor each.

    The layers' buffers become views of these, so that algebra on the vectors of all matrices takes a few operations
    however many there are. Layers must be on their device before, and be in one stack only.
    """

    def __init__(self, layers: Sequence[tuple[str, ShardedLinear]]) -> None:
        """`layers`: at least one, with their names."""
        self.layers = [layer for _, layer in layers]
        self.matrices = [matrix for name, layer in layers for matrix in matrices_of(name, layer)]
        self.replicated_R = _one_buffer(self.layers, "replicated")
        self.split_S = _one_buffer(self.layers, "split")
        self.sigma_M = _one_buffer(self.layers, "sigma")
        device = self.sigma_M.device
        self.sharing_rows = [matrix.layer.split_dim == 0 for matrix in self.matrices]
        self.replicated = Segments([matrix.replicated_r.numel() for matrix in self.matrices], device)
        self.split = Segments([matrix.split_s.numel() for matrix in self.matrices], device)

    def weights(self) -> list[Tensor]:
        """The matrices (O, I) themselves, without gradients."""
        return self._blocks([layer.weight.detach() for layer in self.layers])

    def grads(self) -> list[Tensor]:
        """Their gradients (O, I), which a finished backward pass has left."""
        grads = [layer.weight.grad for layer in self.layers if layer.weight.grad is not None]
        assert len(grads) == len(self.layers), "pull_back needs the gradients of a finished backward pass"
        return self._blocks(grads)

    def effectives(self) -> list[Tensor]:
        """W_hat (O, I) of reparametrised matrices."""
        return self._blocks([layer.effective for layer in self.layers if layer.effective is not None])

    def _blocks(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        """The matrices' rows of tensors shaped like the layers' weights, as views."""
        blocks: list[Tensor] = []
        for layer, tensor in zip(self.layers, tensors, strict=True):
            blocks.extend(tensor.split(list(layer.rows.values())) if len(layer.rows) > 1 else (tensor,))
        return blocks

    def gamma_M(self) -> Tensor:
        """A copy of the gammas of reparametrised layers: the engine keeps their parameters where it likes."""
        return torch.cat([layer.gamma.detach() for layer in self.layers if layer.gamma is not None])

    def of_layers(self, values_M: Tensor) -> tuple[Tensor, ...]:
        """The values of each layer's matrices, as views (K,)."""
        return values_M.split([len(layer.rows) for layer in self.layers])


def _one_buffer(layers: Sequence[ShardedLinear], name: str) -> Tensor:
    """Move a buffer of all layers into one flat tensor, of which theirs are views from now on."""
    flat = torch.cat([getattr(layer, name).flatten() for layer in layers])
    parts = flat.split([getattr(layer, name).numel() for layer in layers])
    for layer, part in zip(layers, parts, strict=True):
        setattr(layer, name, part.view_as(getattr(layer, name)))
    return flat
