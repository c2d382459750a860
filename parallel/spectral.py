"""sigmaReparam at the step boundary: pull gradients back from W_hat to W and gamma, refresh u, v, sigma and W_hat.

W_hat = (gamma / sigma(W)) W (Zhai et al. 2023, eq. 2). W, u, v, sigma and gamma do not change between two optimizer
steps, so forward and backward use W_hat as an ordinary weight and all of sigmaReparam happens here, once per step.
With G = dL/dW_hat accumulated over micro-batches and c = <G, W>:

    dW     = (gamma / sigma) (G - (c / sigma) v uᵀ)          dgamma = c / sigma

which is what autograd gives through the in-forward layer with u and v held constant. Both moves serve all layers of a
rank with one all-reduce each over the tensor-parallel group.

Notation and shapes: those of `parallel.matrices`. What goes over whole matrices is in `parallel.boundary`; here is the
algebra of their vectors and norms, a few operations for all matrices of a rank.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

import torch
import torch.distributed as dist
from torch import Tensor

from configs.errors import ConfigError
from parallel.boundary import Boundary, boundary_of
from parallel.linear import ShardedLinear
from parallel.matrices import MatrixStack, SpectralMatrix
from parallel.seeds import seed_for
from parallel.topology import TensorParallel

if TYPE_CHECKING:
    from configs.schema import ReparamConfig

PLAIN_START = 20
"""Power iterations before a plain matrix's first spectral norm: from a random vector they reach 98 % of it."""


class SpectralReparam:
    """Step-boundary sigmaReparam of the linears one rank holds; also casts plain linears to the compute dtype.

    The layers must be on their device before, and in one `SpectralReparam` only: their `replicated`, `split` and
    `sigma` become views of tensors that hold those of all layers.
    """

    def __init__(self, layers: Iterable[tuple[str, ShardedLinear]], tp: TensorParallel) -> None:
        layers = list(layers)
        self.tp = tp
        self.layers = [layer for _, layer in layers]
        self._reparametrised = _boundary(layers, reparametrised=True)
        self._plain = _boundary(layers, reparametrised=False)

    @property
    def matrices(self) -> list[SpectralMatrix]:
        """The reparametrised matrices."""
        return self._reparametrised.stack.matrices if self._reparametrised is not None else []

    @property
    def plain(self) -> list[SpectralMatrix]:
        """The others: not touched by training, `measure_plain` finds their spectral norms."""
        return self._plain.stack.matrices if self._plain is not None else []

    @torch.no_grad()
    def start(self, config: ReparamConfig, seed: int) -> None:
        """Find u, v and sigma of the initial weights, set gamma and write W_hat.

        `seed` draws the random vectors of a `power` start, the same on every rank and in every layout.

        Raises:
            ConfigError: a matrix is all zeros, so that W / sigma(W) is undefined.
        """
        if self._reparametrised is None:
            return self._write_effective()
        for matrix in self.matrices:
            if config.start == "svd":
                self._start_by_svd(matrix)
            else:
                _draw(matrix, seed)
        for _ in range(config.start_iterations if config.start == "power" else 1):
            self._iterate(self._reparametrised)
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
        """dL/dW_hat, accumulated in `weight.grad`, becomes dL/dW; dL/dgamma is set. One all-reduce."""
        if self._reparametrised is None:
            return
        stack = self._reparametrised.stack
        c_M = self._reparametrised.inner_products()
        self._all_reduce(c_M)
        ratio_M = c_M / stack.sigma_M
        self._reparametrised.pull_back(stack.gamma_M() / stack.sigma_M, ratio_M)
        for layer, ratio_K in zip(stack.layers, stack.of_layers(ratio_M), strict=True):
            assert layer.gamma is not None
            layer.gamma.grad = ratio_K

    @torch.no_grad()
    def refresh(self) -> None:
        """After an optimizer step: one power iteration on the new W, then W_hat. One all-reduce."""
        if self._reparametrised is not None:
            self._iterate(self._reparametrised)
        self._write_effective()

    @torch.no_grad()
    def follow(self) -> None:
        """W and gamma were moved and will be moved back: sigma = sᵀ W r with s and r held, and W_hat. One all-reduce.

        So a gradient taken there and pulled back is autograd's through the in-forward layer, u and v constant.
        """
        if self._reparametrised is not None:
            stack = self._reparametrised.stack
            sigma_M = stack.split.sums(stack.split_S * self._reparametrised.split_products())
            self._all_reduce(sigma_M)
            torch.where(sigma_M == 0, _eps(sigma_M), sigma_M, out=stack.sigma_M)
        self._write_effective()

    def sigmas(self) -> list[Tensor]:
        """The spectral norms of the reparametrised layers, as they keep them: what `follow` changes besides W_hat."""
        return [self._reparametrised.stack.sigma_M] if self._reparametrised is not None else []

    @torch.no_grad()
    def measure_plain(self, seed: int) -> None:
        """One power iteration on the matrices without sigmaReparam, for their `sigma`. One all-reduce.

        The first time from random vectors, the same on every rank and in every layout, with `PLAIN_START` iterations;
        then from the vectors of the measurement before, which are part of a checkpoint.
        """
        if self._plain is None:
            return
        if not self.plain[0].replicated_r.any():
            for matrix in self.plain:
                _draw(matrix, seed)
            for _ in range(PLAIN_START - 1):
                self._iterate(self._plain)
        self._iterate(self._plain)

    @torch.no_grad()
    def restore(self) -> None:
        """After W, gamma, u, v and sigma were loaded or put back: write W_hat as the step that left them did."""
        self._write_effective()

    def _iterate(self, boundary: Boundary) -> None:
        """One sharded power iteration for every one of these matrices.

        Each rank computes w_s = W_s r and its term of t = Σ W_sᵀ w_s and n = Σ |w_s|²; one all-reduce completes all of
        them. Then sigma = |t| / √n, r ← t / |t|, s ← w_s / √n: the dense iteration exactly, for any number of ranks.
        """
        stack = boundary.stack
        w_S = boundary.split_products()
        buffer = w_S.new_empty(stack.replicated_R.numel() + stack.sigma_M.numel())
        t_R, n_M = buffer.split([stack.replicated_R.numel(), stack.sigma_M.numel()])
        boundary.replicated_products(w_S, t_R)
        n_M.copy_(stack.split.sums(w_S.double().square()))
        self._all_reduce(buffer)
        norm_t_M = stack.replicated.sums(t_R.double().square()).sqrt().to(n_M.dtype)
        norm_w_M = n_M.sqrt()
        # A zero matrix has no singular vectors: keep the old ones and let W_hat = (gamma / eps) 0 = 0.
        alive_M = (norm_t_M > 0) & (norm_w_M > 0)
        torch.where(alive_M, norm_t_M / norm_w_M, _eps(n_M), out=stack.sigma_M)
        for segments, new, norm_M, kept in (
            (stack.replicated, t_R, norm_t_M, stack.replicated_R),
            (stack.split, w_S, norm_w_M, stack.split_S),
        ):
            torch.where(segments.spread(alive_M), new / segments.spread(norm_M), kept, out=kept)

    def _write_effective(self) -> None:
        if self._reparametrised is not None:
            stack = self._reparametrised.stack
            self._reparametrised.write_effective(stack.gamma_M() / stack.sigma_M)
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
            with self.tp.clock.part("communication"):
                dist.all_reduce(buffer, group=self.tp.group)


def _boundary(layers: list[tuple[str, ShardedLinear]], *, reparametrised: bool) -> Boundary | None:
    chosen = [(name, layer) for name, layer in layers if layer.reparametrised == reparametrised]
    return boundary_of(MatrixStack(chosen)) if chosen else None


def _draw(matrix: SpectralMatrix, seed: int) -> None:
    """A random unit vector to start the matrix's power iteration from."""
    generator = torch.Generator().manual_seed(seed_for(seed, "power-iteration", matrix.name))
    start_r = torch.randn(matrix.replicated_r.shape, generator=generator, dtype=torch.float64)
    matrix.replicated_r.copy_(start_r / start_r.norm())


def _eps(like: Tensor) -> Tensor:
    return torch.full_like(like, torch.finfo(like.dtype).tiny ** 0.5)
