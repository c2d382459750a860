"""The decoder, or the part of it that one pipeline stage holds.

Shapes: B batch, T sequence, t this rank's share of it, D hidden, V this rank's share of the padded vocabulary.
"""

from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from configs.schema import ModelConfig
from model.attention import Attention
from model.feedforward import GeluFeedForward, SwigluFeedForward
from model.norm import build_norm
from parallel.embedding import LearnedPositions, VocabParallelEmbedding, count_rows
from parallel.linear import ColumnParallelLinear, LinearSpec
from parallel.recompute import recompute_context
from parallel.regions import enter

LayerProbe = Callable[[int, Tensor], None]
"""Sees (index in the whole model, output (B, t, D)) of every layer; a recomputed layer once."""

LogitsProbe = Callable[[Tensor], None]
"""Sees the logits (B, T, V) of the last stage."""


class DecoderLayer(nn.Module):
    """x + f(N(x)) for attention and feed-forward (pre), or N(x + f(x)) (post): (B, t, D) -> (B, t, D)."""

    def __init__(self, name: str, config: ModelConfig, length: int, spec: LinearSpec) -> None:
        super().__init__()
        self.pre = config.norm_placement == "pre"
        output_std = config.init_std / (2 * config.layers) ** 0.5 if config.depth_scaled_init else config.init_std
        self.attention = Attention(f"{name}.attention", config, length, spec, output_std=output_std)
        feedforward = SwigluFeedForward if config.activation == "swiglu" else GeluFeedForward
        self.feedforward = feedforward(f"{name}.feedforward", config, spec, output_std=output_std)
        self.attention_norm = _residual_norm(config, spec)
        self.feedforward_norm = _residual_norm(config, spec)

    def forward(self, x_BtD: Tensor) -> Tensor:
        if self.pre:
            x_BtD = x_BtD + self.attention(self.attention_norm(x_BtD))
            return x_BtD + self.feedforward(self.feedforward_norm(x_BtD))
        x_BtD = self.attention_norm(x_BtD + self.attention(x_BtD))
        return self.feedforward_norm(x_BtD + self.feedforward(x_BtD))


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
        recompute: bool = False,
    ) -> None:
        """`vocab_size`: live tokens, before padding; `length`: the longest sequence."""
        super().__init__()
        layers = list(layers)
        rows = count_rows(vocab_size, config.vocab_multiple)
        width, std = config.hidden_size, config.init_std
        plain = LinearSpec(spec.tp, spec.seed, spec.compute_dtype, spec.master_dtype)
        self.vocab_size = vocab_size
        self.recompute = recompute
        self.layer_probe: LayerProbe | None = None
        self.logits_probe: LogitsProbe | None = None
        self.tp = spec.tp
        self.embedding = self.positions = self.final_norm = self.head = None
        if layers[0] == 0:
            self.embedding = VocabParallelEmbedding("embedding", rows, width, plain, std=std, live_rows=vocab_size)
            if config.positions == "learned":
                self.positions = LearnedPositions("positions", length, width, plain, std=std)
        self.layers = nn.ModuleDict({str(i): DecoderLayer(f"layers.{i}", config, length, spec) for i in layers})
        self.is_last = layers[-1] == config.layers - 1
        if not self.is_last:
            return
        if config.norm_placement == "pre" and config.norm != "none":
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
            x = self.embedding(x)
        if self.positions is not None:
            x = self.positions(x)
        for index, layer in self.layers.items():
            if self.recompute and torch.is_grad_enabled():
                # Nothing in a layer is random: no generator's state to copy from the device and back.
                x = checkpoint(layer, x, use_reentrant=False, context_fn=recompute_context, preserve_rng_state=False)
            else:
                x = layer(x)
            if self.layer_probe is not None:
                self.layer_probe(int(index), x)
        if self.final_norm is not None:
            x = self.final_norm(x)
        if not self.is_last:
            return x
        logits = self._logits(x)
        if self.logits_probe is not None:
            self.logits_probe(logits)
        return logits

    def _logits(self, x_BtD: Tensor) -> Tensor:
        if self.head is not None:
            return self.head(x_BtD)
        assert self.embedding is not None, "a tied head needs the embedding on the same stage"
        return nn.functional.linear(enter(x_BtD, self.tp), self.embedding.weight.to(x_BtD.dtype))


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
    return LinearSpec(spec.tp, spec.seed, spec.compute_dtype, spec.master_dtype, spec.reparametrised)
