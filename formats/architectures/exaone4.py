"""Exaone 4: RMSNorm on the output of sublayers (OLMo 2's order) and of queries and keys per head, rotary positions,
SwiGLU, grouped queries; without biases."""

from collections.abc import Iterator

from configs.schema import ModelConfig
from formats.architectures.architecture import Architecture, Only, Ours
from formats.architectures.common import (
    SIZES,
    attention,
    full_attention,
    head_norms,
    head_size,
    key_value_heads,
    outer,
    swiglu,
)
from formats.architectures.tensors import Entry, one


def tensors(model: ModelConfig) -> Iterator[Entry]:
    """By layer."""
    yield from outer(model)
    for layer in range(model.layers):
        theirs, ours = f"model.layers.{layer}", f"layers.{layer}"
        yield one(f"{theirs}.post_attention_layernorm.weight", f"{ours}.attention_output_norm.weight")
        yield one(f"{theirs}.post_feedforward_layernorm.weight", f"{ours}.feedforward_output_norm.weight")
        yield from attention(theirs, ours)
        yield from head_norms(theirs, ours)
        yield from swiglu(theirs, ours)


EXAONE4 = Architecture(
    class_name="Exaone4ForCausalLM",
    model_type="exaone4",
    takes={
        "norm": ("rmsnorm",),
        "norm_placement": ("reordered",),
        "positions": ("rope",),
        "activation": ("swiglu",),
        "qk_norm": (True,),
        "bias": (False,),
    },
    keys=(
        *SIZES,
        key_value_heads(32),
        head_size(),
        Only("hidden_act", "silu", "silu", also="swish"),
        Ours("rms_norm_eps", "norm_eps", 1e-5),
        # Layers of full attention rotate queries and keys only where no layer of the model slides.
        Only("sliding_window", None, 4096),
        Only("layer_types", full_attention, None, null_is_right=True),
    ),
    tensors=tensors,
)
