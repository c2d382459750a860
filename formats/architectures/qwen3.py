"""Qwen3: Llama with an RMSNorm of queries and keys, per head; without biases."""

from collections.abc import Iterator

from configs.schema import ModelConfig
from formats.architectures.architecture import Architecture, Only, Ours
from formats.architectures.common import (
    PRE_ROPE,
    SIZES,
    attention,
    head_norms,
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
        yield from head_norms(theirs, ours)
        yield from swiglu(theirs, ours)


QWEN3 = Architecture(
    class_name="Qwen3ForCausalLM",
    model_type="qwen3",
    takes=PRE_ROPE | {"norm": ("rmsnorm",), "activation": ("swiglu",), "qk_norm": (True,), "bias": (False,)},
    keys=(
        *SIZES,
        key_value_heads(32),
        head_size(128),
        Only("hidden_act", "silu", "silu", also="swish"),
        Only("attention_bias", False, False),
        Only("use_sliding_window", False, False),
        Ours("rms_norm_eps", "norm_eps", 1e-6),
    ),
    tensors=tensors,
)
