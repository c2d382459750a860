"""What many architectures share: keys of their `config.json`, and the names that Llama gave tensors.

`ours` and `theirs` are the names of a layer, such as `layers.0` and `model.layers.0`.
"""

from collections.abc import Iterator

from configs.schema import ModelConfig
from formats.architectures.architecture import Key, Only, Ours, Written
from formats.architectures.tensors import Entry, one

SIZES: tuple[Key, ...] = (
    Ours("hidden_size", "hidden_size"),
    Ours("intermediate_size", "ffn_size"),
    Ours("num_hidden_layers", "layers"),
    Ours("num_attention_heads", "heads"),
    Written("attention_dropout", 0.0),
    Ours("initializer_range", "init_std", 0.02),
)
PRE_ROPE = {"norm_placement": ("pre",), "positions": ("rope",)}
"""Norms before sublayers, rotary positions."""


def key_value_heads(default: int | None = None) -> Ours:
    """Grouped queries; null: as many as query heads."""
    return Ours("num_key_value_heads", "kv_heads", default, may_be_null=True)


def head_size(default: int | None = None) -> Only:
    """Heads of other sizes than hidden_size / heads we do not have."""
    return Only("head_dim", lambda model: model.head_size, default, null_is_right=True)


def full_attention(model: ModelConfig) -> list[str]:
    """`layer_types` where every layer attends to all that came before."""
    return ["full_attention"] * model.layers


def outer(model: ModelConfig, *, norm: str = "norm", zeros: bool = False) -> Iterator[Entry]:
    """Embedding, final norm and head; `zeros`: the norm has a bias whether ours has one or not."""
    yield one("model.embed_tokens.weight", "embedding.weight")
    yield from layer_norm(f"model.{norm}", "final_norm", zeros=zeros)
    if not model.tie_embeddings:
        yield one("lm_head.weight", "head.weight/head")


def linear(theirs: str, ours: str, block: str = "", *, zeros: bool = False) -> Iterator[Entry]:
    """A linear layer; `zeros`: with a bias whether ours has one or not."""
    suffix = f"/{block}" if block else ""
    yield one(f"{theirs}.weight", f"{ours}.weight{suffix}")
    yield one(f"{theirs}.bias", f"{ours}.bias{suffix}", zeros=zeros)


def layer_norm(theirs: str, ours: str, *, zeros: bool = False) -> Iterator[Entry]:
    """A norm's scale and bias; of RMSNorm there is no bias to find."""
    yield from linear(theirs, ours, zeros=zeros)


def attention(theirs: str, ours: str) -> Iterator[Entry]:
    """Projections apart, as in Llama; biases where ours has them."""
    for block in "qkv":
        yield from linear(f"{theirs}.self_attn.{block}_proj", f"{ours}.attention.qkv", block)
    yield from linear(f"{theirs}.self_attn.o_proj", f"{ours}.attention.output")


def head_norms(theirs: str, ours: str) -> Iterator[Entry]:
    """One scale for the queries of all heads, one for the keys."""
    yield one(f"{theirs}.self_attn.q_norm.weight", f"{ours}.attention.q_norm.weight")
    yield one(f"{theirs}.self_attn.k_norm.weight", f"{ours}.attention.k_norm.weight")


def swiglu(theirs: str, ours: str) -> Iterator[Entry]:
    """Gate, up and down."""
    for block in ("gate", "up"):
        yield from linear(f"{theirs}.mlp.{block}_proj", f"{ours}.feedforward.gate_up", block)
    yield from linear(f"{theirs}.mlp.down_proj", f"{ours}.feedforward.down")


def pre_norms(theirs: str, ours: str, *, zeros: bool = False) -> Iterator[Entry]:
    """The norms before attention and feed-forward, under Llama's names."""
    yield from layer_norm(f"{theirs}.input_layernorm", f"{ours}.attention_norm", zeros=zeros)
    yield from layer_norm(f"{theirs}.post_attention_layernorm", f"{ours}.feedforward_norm", zeros=zeros)
