"""What Gemma's architectures share: norms that multiply by 1 + weight, embeddings times sqrt(width), capped logits."""

from collections.abc import Iterator, Mapping
from functools import partial

from configs.schema import ModelConfig
from formats.architectures.architecture import ANY, Key, Only, Ours, Tensors
from formats.architectures.common import SIZES, attention, full_attention, head_size, key_value_heads, swiglu
from formats.architectures.tensors import MINUS_ONE, Entry, one

TAKES = {
    "norm": ("rmsnorm",),
    "positions": ("rope",),
    "activation": ("swiglu",),
    "qk_norm": (False,),
    "bias": (False,),
    "embedding_scale": ("sqrt_width",),
    "attention_softcap": ANY,
    "logit_softcap": ANY,
}
KEYS: tuple[Key, ...] = (
    *SIZES,
    key_value_heads(4),
    head_size(256),
    Only("hidden_activation", "silu", "gelu_pytorch_tanh", also="swish"),
    Ours("rms_norm_eps", "norm_eps", 1e-6),
    Ours("attn_logit_softcapping", "attention_softcap", 50.0, may_be_null=True),
    Ours("final_logit_softcapping", "logit_softcap", 30.0, may_be_null=True),
    Only("query_pre_attn_scalar", lambda model: model.head_size, 256),
    Only("attention_bias", False, False),
    Only("layer_types", full_attention, None),
)


def tensors_with(norms: Mapping[str, str]) -> Tensors:
    """Tensors by layer; `norms`: theirs and ours of a layer."""
    return partial(_tensors, norms)


def _tensors(norms: Mapping[str, str], model: ModelConfig) -> Iterator[Entry]:
    yield one("model.embed_tokens.weight", "embedding.weight")
    yield one("model.norm.weight", "final_norm.weight", form=MINUS_ONE)
    if not model.tie_embeddings:
        yield one("lm_head.weight", "head.weight/head")
    for layer in range(model.layers):
        theirs, ours = f"model.layers.{layer}", f"layers.{layer}"
        for their_norm, our_norm in norms.items():
            yield one(f"{theirs}.{their_norm}.weight", f"{ours}.{our_norm}.weight", form=MINUS_ONE)
        yield from attention(theirs, ours)
        yield from swiglu(theirs, ours)
