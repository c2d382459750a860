"""GPT-2: LayerNorm before sublayers, learned positions, GELU, a key/value head for each query head. It has biases
everywhere, and keeps its weights transposed, queries, keys and values in one."""

from collections.abc import Iterator

from configs.schema import ModelConfig
from formats.architectures.architecture import Architecture, Only, Ours, Written
from formats.architectures.common import layer_norm
from formats.architectures.tensors import TRANSPOSED, Entry, one


def tensors(model: ModelConfig) -> Iterator[Entry]:
    """By layer."""
    yield one("transformer.wte.weight", "embedding.weight")
    yield one("transformer.wpe.weight", "positions.weight")
    yield from layer_norm("transformer.ln_f", "final_norm", zeros=True)
    if not model.tie_embeddings:
        yield one("lm_head.weight", "head.weight/head")
    for layer in range(model.layers):
        theirs, ours = f"transformer.h.{layer}", f"layers.{layer}"
        yield from layer_norm(f"{theirs}.ln_1", f"{ours}.attention_norm", zeros=True)
        yield from layer_norm(f"{theirs}.ln_2", f"{ours}.feedforward_norm", zeros=True)
        yield from _conv1d(f"{theirs}.attn.c_attn", f"{ours}.attention.qkv", "q", "k", "v")
        yield from _conv1d(f"{theirs}.attn.c_proj", f"{ours}.attention.output")
        yield from _conv1d(f"{theirs}.mlp.c_fc", f"{ours}.feedforward.up", "up")
        yield from _conv1d(f"{theirs}.mlp.c_proj", f"{ours}.feedforward.down")


def _conv1d(theirs: str, ours: str, *blocks: str) -> Iterator[Entry]:
    suffixes = [f"/{block}" for block in blocks] or [""]
    yield Entry(f"{theirs}.weight", tuple(f"{ours}.weight{suffix}" for suffix in suffixes), TRANSPOSED)
    yield Entry(f"{theirs}.bias", tuple(f"{ours}.bias{suffix}" for suffix in suffixes), TRANSPOSED, zeros=True)


GPT2 = Architecture(
    class_name="GPT2LMHeadModel",
    model_type="gpt2",
    takes={
        "norm": ("layernorm",),
        "norm_placement": ("pre",),
        "positions": ("learned",),
        "activation": ("gelu",),
        "qk_norm": (False,),
    },
    keys=(
        Ours("n_embd", "hidden_size", 768),
        Ours("n_layer", "layers", 12),
        Ours("n_head", "heads", 12),
        Ours("n_inner", "ffn_size", None, may_be_null=True),
        Only("activation_function", "gelu", "gelu_new"),
        Ours("layer_norm_epsilon", "norm_eps", 1e-5),
        Ours("initializer_range", "init_std", 0.02),
        Only("scale_attn_weights", True, True),
        Only("scale_attn_by_inverse_layer_idx", False, False),
        *(Written(f"{place}_pdrop", 0.0) for place in ("resid", "embd", "attn")),
    ),
    tensors=tensors,
    length_key="n_positions",
    aliases={
        "hidden_size": "n_embd",
        "num_hidden_layers": "n_layer",
        "num_attention_heads": "n_head",
        "max_position_embeddings": "n_positions",
    },
    rope=False,
    biases_forced=True,
    grouped=False,
    tied_by_default=True,
    ignored=(".attn.bias", ".attn.masked_bias"),
)
