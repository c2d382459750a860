"""sigmaReparam at the step boundary: pull gradients back from W_hat to W and gamma, refresh u, v, sigma and W_hat.

W_hat = (gamma / sigma(W)) W (Zhai et al. 2023, eq. 2). W, u, v, sigma and gamma do not change between two optimizer
steps, so forward and backward use W_hat as an ordinary weight and all of sigmaReparam happens here, once per step.
With G = dL/dW_hat accumulated over micro-batches and c = <G, W>:

    dW     = (gamma / sigma) (G - (c / sigma) v uᵀ)          dgamma = c / sigma

which is what autograd gives through the in-forward layer with u and v held constant. Both moves serve all layers of a
rank with one all-reduce each over the tensor-parallel group.

Notation: a matrix is read as (s, r): s the side the ranks share ("split"), r the side each holds whole
("replicated"). For column-parallel layers s = out, r = in; for row-parallel layers the transpose.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
import torch.distributed as dist
from torch import Tensor

from configs.errors import ConfigError
from parallel.linear import ShardedLinear
from parallel.seeds import seed_for
from parallel.topology import TensorParallel

if TYPE_CHECKING:
    from configs.schema import ReparamConfig

PLAIN_START = 20
"""Power iterations before a plain matrix's first spectral norm: from a random vector they reach 98 % of it."""


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


class SpectralReparam:
    """Step-boundary sigmaReparam of the linears one rank holds; also casts plain linears to the compute dtype."""

    def __init__(self, layers: Iterable[tuple[str, ShardedLinear]], tp: TensorParallel) -> None:
        layers = list(layers)
        self.tp = tp
        self.layers = [layer for _, layer in layers]
        matrices = [matrix for name, layer in layers for matrix in _matrices(name, layer)]
        self.matrices = [matrix for matrix in matrices if matrix.layer.reparametrised]
        self.plain = [matrix for matrix in matrices if not matrix.layer.reparametrised]
        """The others: not touched by training, `measure_plain` finds their spectral norms."""

    @torch.no_grad()
    def start(self, config: ReparamConfig, seed: int) -> None:
        """Find u, v and sigma of the initial weights, set gamma and write W_hat.

        `seed` draws the random vectors of a `power` start, the same on every rank and in every layout.

        Raises:
            ConfigError: a matrix is all zeros, so that W / sigma(W) is undefined.
        """
        if not self.matrices:
            return self._write_effective()
        for matrix in self.matrices:
            if config.start == "svd":
                self._start_by_svd(matrix)
            else:
                _draw(matrix, seed)
        for _ in range(config.start_iterations if config.start == "power" else 1):
            self._iterate(self.matrices)
        for matrix in self.matrices:
            if not matrix.sigma > _eps(matrix.sigma):
                raise ConfigError(
                    f"model.reparam.kind = sigma: {matrix.name} starts at zero, and W / sigma(W) is undefined there; "
                    "start it from random weights"
                )
            matrix.gamma.copy_(matrix.sigma if config.gamma_init == "sigma" else torch.ones_like(matrix.sigma))
        self._write_effective()

    @torch.no_grad()
    def pull_back(self) -> None:
        """dL/dW_hat, accumulated in `weight.grad`, becomes dL/dW; dL/dgamma is added. One all-reduce."""
        if not self.matrices:
            return
        inner = torch.stack([_inner_product(matrix) for matrix in self.matrices])
        self._all_reduce(inner)
        for layer in {id(matrix.layer): matrix.layer for matrix in self.matrices}.values():
            assert layer.gamma is not None
            layer.gamma.grad = torch.zeros_like(layer.gamma)
        for matrix, c in zip(self.matrices, inner, strict=True):
            grad_sr = matrix.oriented(_grad(matrix.layer))
            ratio = c / matrix.sigma
            grad_sr.addr_(matrix.split_s * -ratio, matrix.replicated_r).mul_(matrix.gamma / matrix.sigma)
            matrix.layer.gamma.grad[matrix.index] = ratio  # type: ignore[union-attr, index]

    @torch.no_grad()
    def refresh(self) -> None:
        """After an optimizer step: one power iteration on the new W, then W_hat. One all-reduce."""
        if self.matrices:
            self._iterate(self.matrices)
        self._write_effective()

    @torch.no_grad()
    def follow(self) -> None:
        """W and gamma were moved and will be moved back: sigma = sᵀ W r with s and r held, and W_hat. One all-reduce.

        So a gradient taken there and pulled back is autograd's through the in-forward layer, u and v constant.
        """
        if self.matrices:
            weights = [(matrix, matrix.oriented(matrix.layer.weight)) for matrix in self.matrices]
            sigmas = torch.stack([matrix.split_s @ (weight_sr @ matrix.replicated_r) for matrix, weight_sr in weights])
            self._all_reduce(sigmas)
            for matrix, sigma in zip(self.matrices, torch.where(sigmas == 0, _eps(sigmas), sigmas), strict=True):
                matrix.sigma.copy_(sigma)
        self._write_effective()

    def sigmas(self) -> list[Tensor]:
        """The spectral norms of the reparametrised layers, as they keep them: what `follow` changes besides W_hat."""
        return [layer.sigma for layer in self.layers if layer.reparametrised]

    @torch.no_grad()
    def measure_plain(self, seed: int) -> None:
        """One power iteration on the matrices without sigmaReparam, for their `sigma`. One all-reduce.

        The first time from random vectors, the same on every rank and in every layout, with `PLAIN_START` iterations;
        then from the vectors of the measurement before, which are part of a checkpoint.
        """
        if not self.plain:
            return
        if not self.plain[0].replicated_r.any():
            for matrix in self.plain:
                _draw(matrix, seed)
            for _ in range(PLAIN_START - 1):
                self._iterate(self.plain)
        self._iterate(self.plain)

    @torch.no_grad()
    def restore(self) -> None:
        """After W, gamma, u, v and sigma were loaded or put back: write W_hat as the step that left them did."""
        self._write_effective()

    def _iterate(self, matrices: Sequence[SpectralMatrix]) -> None:
        """One sharded power iteration for every one of these matrices.

        Each rank computes w_s = W_s r and its term of t = Σ W_sᵀ w_s and n = Σ |w_s|²; one all-reduce completes all of
        them. Then sigma = |t| / √n, r ← t / |t|, s ← w_s / √n: the dense iteration exactly, for any number of ranks.
        """
        split_parts, pieces = [], []
        for matrix in matrices:
            weight_sr = matrix.oriented(matrix.layer.weight)
            w_s = weight_sr @ matrix.replicated_r
            split_parts.append(w_s)
            pieces += [weight_sr.T @ w_s, w_s.square().sum()[None]]
        buffer = torch.cat(pieces)
        self._all_reduce(buffer)
        offset = 0
        for matrix, w_s in zip(matrices, split_parts, strict=True):
            length = matrix.replicated_r.numel()
            t_r, n = buffer[offset : offset + length], buffer[offset + length]
            offset += length + 1
            norm_t, norm_w = t_r.norm(), n.sqrt()
            # A zero matrix has no singular vectors: keep the old ones and let W_hat = (gamma / eps) 0 = 0.
            alive = (norm_t > 0) & (norm_w > 0)
            matrix.sigma.copy_(torch.where(alive, norm_t / norm_w, _eps(n)))
            matrix.replicated_r.copy_(torch.where(alive, t_r / norm_t, matrix.replicated_r))
            matrix.split_s.copy_(torch.where(alive, w_s / norm_w, matrix.split_s))

    def _write_effective(self) -> None:
        for matrix in self.matrices:
            layer = matrix.layer
            torch.mul(layer.weight[matrix.rows], matrix.gamma / matrix.sigma, out=layer.effective[matrix.rows])  # type: ignore[index]
        for layer in self.layers:
            if not layer.reparametrised and layer.effective is not None:
                layer.effective.copy_(layer.weight)

    def _start_by_svd(self, matrix: SpectralMatrix) -> None:
        """Singular vectors of the whole matrix, gathered once; every rank computes the same ones."""
        full_sr = self._gather(matrix)
        _, _, right_r = torch.linalg.svd(full_sr.double(), full_matrices=False)
        matrix.replicated_r.copy_(right_r[0])

    def _gather(self, matrix: SpectralMatrix) -> Tensor:
        shard = matrix.oriented(matrix.layer.weight).contiguous()
        if self.tp.size == 1:
            return shard
        shards = [torch.empty_like(shard) for _ in range(self.tp.size)]
        dist.all_gather(shards, shard, group=self.tp.group)
        # Ranks interleave the blocks of a matrix that packs several; the order of rows leaves r unchanged.
        return torch.cat(shards)

    def _all_reduce(self, buffer: Tensor) -> None:
        if self.tp.size > 1:
            dist.all_reduce(buffer, group=self.tp.group)


def _matrices(name: str, layer: ShardedLinear) -> list[SpectralMatrix]:
    matrices, first = [], 0
    for index, (block, rows) in enumerate(layer.rows.items()):
        label = name if len(layer.rows) == 1 else f"{name}.{block}"
        matrices.append(SpectralMatrix(label, layer, index, slice(first, first + rows)))
        first += rows
    return matrices


def _draw(matrix: SpectralMatrix, seed: int) -> None:
    """A random unit vector to start the matrix's power iteration from."""
    generator = torch.Generator().manual_seed(seed_for(seed, "power-iteration", matrix.name))
    start_r = torch.randn(matrix.replicated_r.shape, generator=generator, dtype=torch.float64)
    matrix.replicated_r.copy_(start_r / start_r.norm())


def _grad(layer: ShardedLinear) -> Tensor:
    assert layer.weight.grad is not None, "pull_back needs the gradients of a finished backward pass"
    return layer.weight.grad


def _inner_product(matrix: SpectralMatrix) -> Tensor:
    """This rank's term of c = <dL/dW_hat, W>."""
    return torch.sum(_grad(matrix.layer)[matrix.rows] * matrix.layer.weight[matrix.rows])


def _eps(like: Tensor) -> Tensor:
    return torch.full_like(like, torch.finfo(like.dtype).tiny ** 0.5)
