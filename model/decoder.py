"""The decoder, or the part of it that one pipeline stage holds.

Shapes: B batch, T sequence, t this rank's share of it, D hidden, V this rank's share of the padded vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from model.attention import Attention
from model.cache import KeyValueCache, LayerCache
from model.feedforward import GeluFeedForward, SwigluFeedForward
from model.norm import build_norm
from model.residual import build_residual
from model.softcap import softcap
from parallel.embedding import LearnedPositions, VocabParallelEmbedding, count_rows
from parallel.linear import ColumnParallelLinear, LinearSpec
from parallel.recompute import Recompute, run_layer
from parallel.regions import enter

if TYPE_CHECKING:
    from configs.schema import ModelConfig

LayerProbe = Callable[[int, Tensor], None]
"""Sees (index in the whole model, output (B, t, D)) of every layer; a recomputed layer once."""

LogitsProbe = Callable[[Tensor], None]
"""Sees the logits (B, T, V) of the last stage."""


class DecoderLayer(nn.Module):
    """Attention, then feed-forward, each of them f in one of the norm placements: (B, t, D) -> (B, t, D).

    pre x + f(N(x)); post N(x + f(x)); peri x + N(f(N(x))); reordered x + N(f(x)), where + is `build_residual`'s.
    """

    def __init__(self, name: str, config: ModelConfig, length: int, spec: LinearSpec) -> None:
        super().__init__()
        self.post = config.norm_placement == "post"
        self.attention = Attention(f"{name}.attention", config, length, spec)
        feedforward = SwigluFeedForward if config.activation == "swiglu" else GeluFeedForward
        self.feedforward = feedforward(f"{name}.feedforward", config, spec)
        self.attention_norm, self.attention_output_norm = _sublayer_norms(config, spec)
        self.feedforward_norm, self.feedforward_output_norm = _sublayer_norms(config, spec)
        self.attention_residual = build_residual(config, spec.tp)
        self.feedforward_residual = build_residual(config, spec.tp)

    def forward(self, x_BtD: Tensor, cache: LayerCache | None = None) -> Tensor:
        if self.post:
            x_BtD = self.attention_norm(self.attention_residual(x_BtD, self.attention(x_BtD, cache)))
            return self.feedforward_norm(self.feedforward_residual(x_BtD, self.feedforward(x_BtD)))
        y_BtD = self.attention_output_norm(self.attention(self.attention_norm(x_BtD), cache))
        x_BtD = self.attention_residual(x_BtD, y_BtD)
        y_BtD = self.feedforward_output_norm(self.feedforward(self.feedforward_norm(x_BtD)))
        return self.feedforward_residual(x_BtD, y_BtD)


class Decoder(nn.Module):
    """Layers `layers` of the decoder, with the embedding if they are the first and the head if they are the last.

    tokens (B, T) or hidden (B, t, D) -> hidden (B, t, D) or logits (B, T, V). Layers keep their index in the whole
    model, so that a parameter has the same name in every layout. Post-norm models end in a norm already; the others
    get a final one.
    """

    def __init__(
        self,
        config: ModelConfig,
        spec: LinearSpec,
        *,
        vocab_size: int,
        length: int,
        layers: Iterable[int],
        recompute: Recompute = "none",
        compiled: bool = False,
    ) -> None:
        """`vocab_size`: live tokens, before padding; `length`: the longest sequence.

        `compiled`: layers run as torch.compile makes them, one graph for all, except where probes see their attention.
        """
        super().__init__()
        layers = list(layers)
        rows = count_rows(vocab_size, config.vocab_multiple)
        width, std = config.hidden_size, config.init_std
        plain = replace(spec, reparametrised=False, bias=False)
        self.vocab_size = vocab_size
        self.recompute = recompute
        # A function beside the modules: parameters keep their names. Its shapes never change.
        self._run_compiled = torch.compile(run_layer, dynamic=False) if compiled else run_layer
        self.layer_probe: LayerProbe | None = None
        self.logits_probe: LogitsProbe | None = None
        self.tp = spec.tp
        self.embedding_scale = width**0.5 if config.embedding_scale == "sqrt_width" else 1.0
        self.logit_softcap = config.logit_softcap
        self.embedding = self.positions = self.embedding_norm = self.final_norm = self.head = None
        if layers[0] == 0:
            self.embedding = VocabParallelEmbedding("embedding", rows, width, plain, std=std, live_rows=vocab_size)
            if config.positions == "learned":
                self.positions = LearnedPositions("positions", length, width, plain, std=std)
            if config.embedding_norm:
                self.embedding_norm = _residual_norm(config, spec)
        self.layers = nn.ModuleDict({str(i): DecoderLayer(f"layers.{i}", config, length, spec) for i in layers})
        self.is_last = layers[-1] == config.layers - 1
        if not self.is_last:
            return
        if config.norm_placement != "post" and config.norm != "none":
            self.final_norm = _residual_norm(config, spec)
        if not config.tie_embeddings:
            head_spec = spec if config.reparam.head else plain
            self.head = ColumnParallelLinear(
                "head", width, {"head": rows}, _without_bias(head_spec), std=std, live_rows=vocab_size
            )

    def attention_layers(self) -> list[tuple[int, Attention]]:
        """The attention of each layer here, with the layer's index in the whole model."""
        return [(int(i), layer.attention) for i, layer in self.layers.items() if isinstance(layer, DecoderLayer)]

    def forward(self, x: Tensor) -> Tensor:
        if self.embedding is not None:
            x = self._embed(x)
        for index, layer in self.layers.items():
            assert isinstance(layer, DecoderLayer)
            # A probe would break the graph: measured steps run the same layers as they are written.
            run = run_layer if layer.attention.probes else self._run_compiled
            x = run(layer, x, self.recompute)
            if self.layer_probe is not None:
                self.layer_probe(int(index), x)
        if not self.is_last:
            return x
        logits = self._logits(x)
        if self.logits_probe is not None:
            self.logits_probe(logits)
        return logits

    def next_logits(self, tokens_BT: Tensor, cache: KeyValueCache) -> Tensor:
        """Tokens that follow those in the cache, and join them -> logits of the token after the last, (B, V).

        Of a whole decoder on one rank, for inference.
        """
        x_BTD = self._embed(tokens_BT, cache.length)
        for layer, cached in zip(self.layers.values(), cache.layers, strict=True):
            x_BTD = layer(x_BTD, cached)
        return self._logits(x_BTD[:, -1:])[:, 0]

    def _embed(self, tokens_BT: Tensor, first: int = 0) -> Tensor:
        assert self.embedding is not None
        x_BtD = self.embedding(tokens_BT)
        if self.embedding_scale != 1:
            x_BtD = x_BtD * self.embedding_scale
        if self.positions is not None:
            x_BtD = self.positions(x_BtD, first)
        return x_BtD if self.embedding_norm is None else self.embedding_norm(x_BtD)

    def _logits(self, x_BtD: Tensor) -> Tensor:
        if self.final_norm is not None:
            x_BtD = self.final_norm(x_BtD)
        if self.head is not None:
            logits_BTV = self.head(x_BtD)
        else:
            assert self.embedding is not None, "a tied head needs the embedding on the same stage"
            logits_BTV = nn.functional.linear(enter(x_BtD, self.tp), self.embedding.weight.to(x_BtD.dtype))
        return logits_BTV if self.logit_softcap is None else softcap(logits_BTV, self.logit_softcap)


def _sublayer_norms(config: ModelConfig, spec: LinearSpec) -> tuple[nn.Module, nn.Module]:
    """The norm before a sublayer (post: after its sum), and the one on its output."""
    placement = config.norm_placement
    norm = nn.Identity() if placement == "reordered" else _residual_norm(config, spec)
    output_norm = _residual_norm(config, spec) if placement in ("peri", "reordered") else nn.Identity()
    return norm, output_norm


def _residual_norm(config: ModelConfig, spec: LinearSpec) -> nn.Module:
    return build_norm(
        config.norm,
        config.hidden_size,
        config.norm_eps,
        spec.tp,
        bias=config.bias,
        partial=spec.tp.sequence_parallel,
    )


def _without_bias(spec: LinearSpec) -> LinearSpec:
    return replace(spec, bias=False)
