"""Llama: RMSNorm before sublayers, rotary positions, SwiGLU, grouped queries; all linears of the blocks with biases,
or none."""

from collections.abc import Iterator

from configs.schema import ModelConfig
from formats.architectures.architecture import Architecture, Only, Ours
from formats.architectures.common import (
    PRE_ROPE,
    SIZES,
    attention,
    head_size,
    key_value_heads,
    outer,
    pre_norms,
    swiglu,
)
from formats.architectures.tensors import Entry


def tensors(model: ModelConfig) -> Iterator[Entry]:
    """By layer."""
    yield from outer(model)
    for layer in range(model.layers):
        theirs, ours = f"model.layers.{layer}", f"layers.{layer}"
        yield from pre_norms(theirs, ours)
        yield from attention(theirs, ours)
        yield from swiglu(theirs, ours)


LLAMA = Architecture(
    class_name="LlamaForCausalLM",
    model_type="llama",
    takes=PRE_ROPE | {"norm": ("rmsnorm",), "activation": ("swiglu",), "qk_norm": (False,)},
    keys=(
        *SIZES,
        key_value_heads(),
        head_size(),
        Only("hidden_act", "silu", "silu", also="swish"),
        Ours("rms_norm_eps", "norm_eps", 1e-6),
        Ours("attention_bias", "bias", False),
        Ours("mlp_bias", "bias", False),
    ),
    tensors=tensors,
)
