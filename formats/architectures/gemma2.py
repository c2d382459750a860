"""Gemma 2: RMSNorm before and after sublayers (peri-LN), rotary positions, a gated feed-forward layer (here SwiGLU),
grouped queries, capped logits or not, embeddings times sqrt(width); without biases."""

from formats.architectures.architecture import Architecture
from formats.architectures.gemma import KEYS, TAKES, tensors_with

GEMMA2 = Architecture(
    class_name="Gemma2ForCausalLM",
    model_type="gemma2",
    takes={**TAKES, "norm_placement": ("peri",)},
    keys=KEYS,
    tensors=tensors_with(
        {
            "input_layernorm": "attention_norm",
            "post_attention_layernorm": "attention_output_norm",
            "pre_feedforward_layernorm": "feedforward_norm",
            "post_feedforward_layernorm": "feedforward_output_norm",
        }
    ),
    tied_by_default=True,
)
