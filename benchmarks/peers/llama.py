"""Hugging Face transformers' Llama in a plain loop: its own model, attention and loss, torch's AdamW."""

import torch

from benchmarks.peers.loop import Loop
from benchmarks.peers.task import Task

NORM_EPSILON = 1e-5
"""As `model.norm_eps`; transformers' own default is 1e-6."""


class LlamaLoop(Loop):
    """`LlamaForCausalLM` with SDPA attention and no cache."""

    def __init__(self, task: Task) -> None:
        from transformers import LlamaConfig, LlamaForCausalLM  # seconds of importing, for those who take part

        torch.manual_seed(task.seed)
        config = LlamaConfig(
            vocab_size=task.vocabulary,
            hidden_size=task.width,
            intermediate_size=task.inner,
            num_hidden_layers=task.layers,
            num_attention_heads=task.heads,
            num_key_value_heads=task.kv_heads,
            max_position_embeddings=task.length,
            rms_norm_eps=NORM_EPSILON,
            rope_parameters={"rope_type": "default", "rope_theta": 10_000.0},
            tie_word_embeddings=False,
            attn_implementation="sdpa",
        )
        super().__init__(task, LlamaForCausalLM(config).train())

    def loss(self, tokens_BT: torch.Tensor, targets_BT: torch.Tensor) -> torch.Tensor:
        """The model's own loss. Targets are given as they are: left to shift the tokens it would predict one less."""
        return self.model(input_ids=tokens_BT, labels=targets_BT, shift_labels=targets_BT, use_cache=False).loss
