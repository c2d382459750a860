"""Persimmon: LayerNorm before sublayers, rotary positions, GELU, a key/value head for each query head, LayerNorm of
queries and keys. It has biases everywhere, and keeps queries, keys and values in one weight, head by head."""

from collections.abc import Iterator

from configs.schema import ModelConfig
from formats.architectures.architecture import Architecture, Only, Ours, Written
from formats.architectures.common import PRE_ROPE, SIZES, layer_norm, linear, outer, pre_norms
from formats.architectures.tensors import Entry, Interleaved


def tensors(model: ModelConfig) -> Iterator[Entry]:
    """By layer."""
    yield from outer(model, norm="final_layernorm", zeros=True)
    by_head = Interleaved(model.head_size)
    for layer in range(model.layers):
        theirs, ours = f"model.layers.{layer}", f"layers.{layer}"
        yield from pre_norms(theirs, ours, zeros=True)
        for what in ("weight", "bias"):
            qkv = tuple(f"{ours}.attention.qkv.{what}/{block}" for block in "qkv")
            yield Entry(f"{theirs}.self_attn.query_key_value.{what}", qkv, by_head, zeros=what == "bias")
        yield from linear(f"{theirs}.self_attn.dense", f"{ours}.attention.output", zeros=True)
        yield from layer_norm(f"{theirs}.self_attn.q_layernorm", f"{ours}.attention.q_norm", zeros=True)
        yield from layer_norm(f"{theirs}.self_attn.k_layernorm", f"{ours}.attention.k_norm", zeros=True)
        yield from linear(f"{theirs}.mlp.dense_h_to_4h", f"{ours}.feedforward.up", "up", zeros=True)
        yield from linear(f"{theirs}.mlp.dense_4h_to_h", f"{ours}.feedforward.down", zeros=True)


PERSIMMON = Architecture(
    class_name="PersimmonForCausalLM",
    model_type="persimmon",
    takes=PRE_ROPE | {"norm": ("layernorm",), "activation": ("gelu",), "qk_norm": (True,)},
    keys=(
        *SIZES,
        Only("hidden_act", "gelu", "relu2"),
        Ours("layer_norm_eps", "norm_eps", 1e-5),
        Only("qk_layernorm", True, True),
        Written("hidden_dropout", 0.0),
    ),
    tensors=tensors,
    partial_rotary=0.5,
    biases_forced=True,
    grouped=False,
)
