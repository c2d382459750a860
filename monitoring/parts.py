"""What monitoring needs of the parts of a model and of what trains it."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Literal, Protocol

from torch import Tensor, nn

from parallel.embedding import VocabParallelEmbedding
from parallel.engine import Engine
from parallel.linear import ColumnParallelLinear
from parallel.recompute import is_recomputing, not_repeated
from parallel.spectral import SpectralReparam

AttentionProbe = Callable[[Tensor, Tensor, float], None]
"""Sees (q_BHTK, k_BGTK, scale) of a forward pass, after norms and rotary embedding."""


class AttentionPart(Protocol):
    """An attention layer: which rows make its heads, what caps its logits, and a place for probes."""

    head_size: int
    softcap: float | None
    probes: list[AttentionProbe]

    def projection(self, block: Literal["q", "k", "v"]) -> tuple[ColumnParallelLinear, slice]: ...


def count_heads(attention: AttentionPart, block: Literal["q", "k", "v"]) -> int:
    """Heads of a projection on this rank."""
    _, rows = attention.projection(block)
    return (rows.stop - rows.start) // attention.head_size


@contextmanager
def probed(attention: AttentionPart, probe: AttentionProbe) -> Iterator[None]:
    """`probe` sees the forward passes inside the block, beside any other; each once: no recomputation is seen."""

    def see(q_BHTK: Tensor, k_BGTK: Tensor, scale: float) -> None:
        if not is_recomputing():
            with not_repeated():
                probe(q_BHTK, k_BGTK, scale)

    attention.probes.append(see)
    try:
        yield
    finally:
        attention.probes.remove(see)


class DecoderPart(Protocol):
    """The layers of one pipeline stage, and places for probes of their outputs and of the logits."""

    layers: nn.ModuleDict
    embedding: VocabParallelEmbedding | None
    is_last: bool
    vocab_size: int
    layer_probe: Callable[[int, Tensor], None] | None
    logits_probe: Callable[[Tensor], None] | None


class Trained(Protocol):
    """One rank's part of a training."""

    @property
    def chunks(self) -> Sequence[DecoderPart]: ...
    @property
    def spectral(self) -> SpectralReparam: ...
    @property
    def engine(self) -> Engine: ...
    def attention_layers(self) -> Sequence[tuple[int, AttentionPart]]: ...
