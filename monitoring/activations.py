"""Collapse of the tokens' directions (rank collapse), and sizes of activations and of their gradients, layer by layer.

Seen at every decoder layer's output in the forward passes of a training step; the gradient by a hook on the output.

Shapes: B sequences of a micro-batch, T sequence, t this rank's share of it (T without sequence parallelism), D hidden,
S sequences of the step on this data-parallel rank, L layers of this rank, R tensor-parallel ranks, C = 2 D + 3.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
import torch.distributed as dist
from torch import Tensor

from monitoring.gather import Labels
from monitoring.parts import DecoderPart
from parallel.clock import timed
from parallel.topology import Topology


@dataclass
class _Layer:
    """What was seen of one layer's output: sums over sequences and tokens, and summaries still to be completed."""

    cosine: Tensor
    residual: Tensor
    squares: Tensor
    grad_squares: Tensor
    parts: list[Tensor] = field(default_factory=list)


class ActivationMonitor:
    """Probes the outputs of this rank's layers; every token counts once.

    Without sequence parallelism tensor-parallel ranks hold the same outputs, and the first of them reports. With it
    each sees its tokens, and their summaries are put together when the step is done.
    """

    def __init__(self, chunks: Sequence[DecoderPart], topology: Topology, length: int) -> None:
        """`length`: tokens of a sequence."""
        self._length = length // topology.tensor.size if topology.tensor.sequence_parallel else length
        self._chunks, self._tp, self._device = chunks, topology.tensor, topology.device
        sees = self._tp.rank == 0 or self._tp.sequence_parallel
        self._numbers = [int(index) for chunk in chunks for index in chunk.layers] if sees else []
        self._layers: dict[int, _Layer] = {}
        each = [(layer,) for layer in self._numbers]
        once = each if self._tp.rank == 0 else []
        self.sums: Labels = {
            "token_cosine": once,
            "relative_residual": once,
            "activation": each,
            "activation_grad": each,
        }
        self.maxima: Labels = {}

    @contextmanager
    def probing(self) -> Iterator[None]:
        """See the forward passes inside the block."""
        zeros = torch.zeros(len(self._numbers), 4, dtype=torch.float64, device=self._device)
        self._layers = {layer: _Layer(*row) for layer, row in zip(self._numbers, zeros, strict=True)}
        for chunk in self._chunks if self._layers else ():
            chunk.layer_probe = timed(self._tp.clock, "monitoring", self._see)
        try:
            yield
        finally:
            for chunk in self._chunks:
                chunk.layer_probe = None

    @torch.no_grad()
    def _see(self, layer: int, x_BtD: Tensor) -> None:
        seen = self._layers[layer]
        summary_BC = summarise_tokens(x_BtD)
        seen.squares += summary_BC[:, 0].sum(dtype=torch.float64)
        if self._tp.sequence_parallel:
            seen.parts.append(summary_BC)
        else:
            cosine_B, residual_B = token_collapse(summary_BC[None], self._length)
            seen.cosine += cosine_B.sum()
            seen.residual += residual_B.sum()

        def see_gradient(grad_BtD: Tensor) -> None:
            seen.grad_squares += torch.linalg.vector_norm(grad_BtD.float(), dim=-1).double().square().sum()

        x_BtD.register_hook(
            timed(self._tp.clock, "monitoring", see_gradient)
        )  # goes with the graph of this forward pass

    @torch.no_grad()
    def collect(self) -> dict[str, Tensor]:
        """Sums by label; gradients are of this data-parallel rank's mean loss.

        One all-gather over tensor-parallel ranks under sequence parallelism.
        """
        layers = list(self._layers.values())
        if self._tp.sequence_parallel:
            self._complete(layers)
        first = layers if self._tp.rank == 0 else []
        self._layers = {}
        return {
            "token_cosine": self._stack([seen.cosine for seen in first]),
            "relative_residual": self._stack([seen.residual for seen in first]),
            "activation": self._stack([seen.squares for seen in layers]),
            "activation_grad": self._stack([seen.grad_squares for seen in layers]),
        }

    def _complete(self, layers: Sequence[_Layer]) -> None:
        """Put the summaries of all shares of each sequence together."""
        mine_LSC = torch.stack([torch.cat(seen.parts) for seen in layers])
        parts_RLSC = mine_LSC.new_empty(self._tp.size, *mine_LSC.shape)
        dist.all_gather(list(parts_RLSC), mine_LSC, group=self._tp.group)
        for seen, parts_RSC in zip(layers, parts_RLSC.unbind(1), strict=True):
            cosine_S, residual_S = token_collapse(parts_RSC, self._length)
            seen.cosine += cosine_S.sum()
            seen.residual += residual_S.sum()

    def _stack(self, numbers: list[Tensor]) -> Tensor:
        return torch.stack(numbers) if numbers else torch.empty(0, device=self._device)


def summarise_tokens(x_BtD: Tensor) -> Tensor:
    """(B, C) for each sequence's tokens here: Σ‖x‖², Σ‖x - x̄‖², Σ‖x/‖x‖‖², their mean x̄ and the sum of x/‖x‖.

    In fp32; a token that is zero has no direction and counts as one that is orthogonal to all others.
    """
    x_BtD = x_BtD.float()
    norm_Bt = torch.linalg.vector_norm(x_BtD, dim=-1)
    mean_BD = x_BtD.mean(1)
    inverse_Bt = torch.where(norm_Bt > 0, 1 / norm_Bt, 0.0)
    direction_BD = torch.bmm(inverse_Bt[:, None], x_BtD)[:, 0]
    spread_B = torch.linalg.vector_norm(x_BtD - mean_BD[:, None], dim=(1, 2)).square()
    columns = [norm_Bt.square().sum(1), spread_B, (norm_Bt * inverse_Bt).square().sum(1)]
    return torch.cat([torch.stack(columns, dim=1), mean_BD, direction_BD], dim=1)


def token_collapse(parts_RSC: Tensor, length: int) -> tuple[Tensor, Tensor]:
    """(S,) mean cosine of two different tokens, and ‖X - 1 x̄ᵀ‖_F / ‖X‖_F, of sequences in R shares of `length` tokens.

    Sums of squares about the mean are put together as in Chan et al. 1979, which cancels nothing when tokens are close.
    Source: Noci et al. 2022, section 3.
    """
    parts_RSC = parts_RSC.double()
    tokens, width = parts_RSC.shape[0] * length, (parts_RSC.shape[2] - 3) // 2
    squares_S, spread_S, directed_S = parts_RSC[..., :3].sum(0).unbind(-1)
    mean_RSD, direction_RSD = parts_RSC[..., 3:].split(width, dim=-1)
    between_S = length * (mean_RSD - mean_RSD.mean(0)).square().sum(dim=(0, 2))
    cosine_S = (direction_RSD.sum(0).square().sum(-1) - directed_S) / (tokens * (tokens - 1))
    return cosine_S, ((spread_S + between_S) / squares_S).sqrt()
