"""Starcoder2: LayerNorm before sublayers, rotary positions, GELU, grouped queries. Its norms always have biases."""

from collections.abc import Iterator

from configs.schema import ModelConfig
from formats.architectures.architecture import Architecture, Only, Ours, Written
from formats.architectures.common import PRE_ROPE, SIZES, attention, key_value_heads, linear, outer, pre_norms
from formats.architectures.tensors import Entry


def tensors(model: ModelConfig) -> Iterator[Entry]:
    """By layer."""
    yield from outer(model, zeros=True)
    for layer in range(model.layers):
        theirs, ours = f"model.layers.{layer}", f"layers.{layer}"
        yield from pre_norms(theirs, ours, zeros=True)
        yield from attention(theirs, ours)
        yield from linear(f"{theirs}.mlp.c_fc", f"{ours}.feedforward.up", "up")
        yield from linear(f"{theirs}.mlp.c_proj", f"{ours}.feedforward.down")


STARCODER2 = Architecture(
    class_name="Starcoder2ForCausalLM",
    model_type="starcoder2",
    takes=PRE_ROPE | {"norm": ("layernorm",), "activation": ("gelu",), "qk_norm": (False,)},
    keys=(
        *SIZES,
        key_value_heads(2),
        Only("hidden_act", "gelu", "gelu_pytorch_tanh"),
        Ours("norm_epsilon", "norm_eps", 1e-5),
        Ours("use_bias", "bias", True),
        Only("sliding_window", None, None),
        Written("residual_dropout", 0.0),
        Written("embedding_dropout", 0.0),
    ),
    tensors=tensors,
    tied_by_default=True,
)
