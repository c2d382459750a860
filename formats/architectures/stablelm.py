"""StableLM: LayerNorm before sublayers, rotary positions, SwiGLU, grouped queries; with or without a LayerNorm of
queries and keys, whose scale it keeps head by head. Its norms have biases, its linears none."""

from collections.abc import Iterator

from configs.schema import ModelConfig
from formats.architectures.architecture import Architecture, Only, Ours, Written
from formats.architectures.common import PRE_ROPE, SIZES, attention, key_value_heads, outer, pre_norms, swiglu
from formats.architectures.tensors import Entry, one


def tensors(model: ModelConfig) -> Iterator[Entry]:
    """By layer."""
    yield from outer(model, zeros=True)
    for layer in range(model.layers):
        theirs, ours = f"model.layers.{layer}", f"layers.{layer}"
        yield from pre_norms(theirs, ours, zeros=True)
        yield from attention(theirs, ours)
        yield from swiglu(theirs, ours)
        if model.qk_norm:
            for block, heads in (("q", model.heads), ("k", model.key_value_heads)):
                for head in range(heads):
                    name = f"{theirs}.self_attn.{block}_layernorm.norms.{head}.weight"
                    yield one(name, f"{ours}.attention.{block}_norm.weight")


STABLELM = Architecture(
    class_name="StableLmForCausalLM",
    model_type="stablelm",
    takes=PRE_ROPE | {"norm": ("layernorm",), "activation": ("swiglu",), "bias": (False,)},
    keys=(
        *SIZES,
        key_value_heads(32),
        Only("hidden_act", "silu", "silu", also="swish"),
        Ours("layer_norm_eps", "norm_eps", 1e-5),
        Ours("qk_layernorm", "qk_norm", False),
        Only("use_qkv_bias", False, False),
        Only("use_parallel_residual", False, False),
        Written("hidden_dropout", 0.0),
    ),
    tensors=tensors,
    partial_rotary=0.25,
)
