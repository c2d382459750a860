"""VaultGemma: Gemma 2 with norms before sublayers only."""

from formats.architectures.architecture import Architecture
from formats.architectures.gemma import KEYS, TAKES, tensors_with

VAULTGEMMA = Architecture(
    class_name="VaultGemmaForCausalLM",
    model_type="vaultgemma",
    takes={**TAKES, "norm_placement": ("pre",)},
    keys=KEYS,
    tensors=tensors_with({"input_layernorm": "attention_norm", "pre_feedforward_layernorm": "feedforward_norm"}),
    tied_by_default=True,
)
