"""What monitoring needs of the parts of a model and of what trains it."""

from collections.abc import Callable, Sequence
from typing import Protocol

from torch import Tensor, nn

from parallel.embedding import VocabParallelEmbedding
from parallel.engine import Engine
from parallel.linear import ColumnParallelLinear
from parallel.spectral import SpectralReparam

AttentionProbe = Callable[[Tensor, Tensor, float], None]
"""Sees (q_BHTK, k_BGTK, scale) of a forward pass, after norms and rotary embedding."""


class AttentionPart(Protocol):
    """An attention layer: where its heads are in `qkv`, and a place for a probe."""

    qkv: ColumnParallelLinear
    head_size: int
    probe: AttentionProbe | None


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
