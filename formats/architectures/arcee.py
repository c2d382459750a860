"""Arcee: Llama with a feed-forward layer that has no gate, here with GELU."""

from collections.abc import Iterator

from configs.schema import ModelConfig
from formats.architectures.architecture import Architecture, Only, Ours
from formats.architectures.common import (
    PRE_ROPE,
    SIZES,
    attention,
    head_size,
    key_value_heads,
    linear,
    outer,
    pre_norms,
)
from formats.architectures.tensors import Entry


def tensors(model: ModelConfig) -> Iterator[Entry]:
    """By layer."""
    yield from outer(model)
    for layer in range(model.layers):
        theirs, ours = f"model.layers.{layer}", f"layers.{layer}"
        yield from pre_norms(theirs, ours)
        yield from attention(theirs, ours)
        yield from linear(f"{theirs}.mlp.up_proj", f"{ours}.feedforward.up", "up")
        yield from linear(f"{theirs}.mlp.down_proj", f"{ours}.feedforward.down")


ARCEE = Architecture(
    class_name="ArceeForCausalLM",
    model_type="arcee",
    takes=PRE_ROPE | {"norm": ("rmsnorm",), "activation": ("gelu",), "qk_norm": (False,)},
    keys=(
        *SIZES,
        key_value_heads(),
        head_size(),
        Only("hidden_act", "gelu", "relu2"),
        Ours("rms_norm_eps", "norm_eps", 1e-5),
        Ours("attention_bias", "bias", False),
        Ours("mlp_bias", "bias", False),
    ),
    tensors=tensors,
)
