"""Hugging Face transformers' Llama in a plain loop: its own model, attention and loss, torch's AdamW."""

import torch
from torch import nn

from benchmarks.peers.autocast import autocast
from benchmarks.peers.task import BETAS, CLIP, EPSILON, LEARNING_RATE, WEIGHT_DECAY, Task, TokenArray

NORM_EPSILON = 1e-5
"""As `model.norm_eps`; transformers' own default is 1e-6."""


class LlamaLoop:
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
        self.model = LlamaForCausalLM(config).train()
        self._tokens = TokenArray(task)
        self._precision = task.precision
        matrices = [p for p in self.model.parameters() if p.ndim >= 2]
        vectors = [p for p in self.model.parameters() if p.ndim < 2]
        groups = [{"params": matrices, "weight_decay": WEIGHT_DECAY}, {"params": vectors, "weight_decay": 0.0}]
        self._optimizer = torch.optim.AdamW(groups, lr=LEARNING_RATE, betas=BETAS, eps=EPSILON)
        self._step = 0

    def loss(self, tokens_BT: torch.Tensor, targets_BT: torch.Tensor) -> torch.Tensor:
        """The model's own loss. Targets are given as they are: left to shift the tokens it would predict one less."""
        return self.model(input_ids=tokens_BT, labels=targets_BT, shift_labels=targets_BT, use_cache=False).loss

    def step(self) -> float:
        """One step of training; see `Contender`."""
        tokens_BT, targets_BT = self._tokens.batch(self._step)
        with autocast(self._precision):
            loss = self.loss(tokens_BT, targets_BT)
        loss.backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), CLIP)
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)
        self._step += 1
        return loss.item()

    def parameters(self) -> int:
        """Parameters of the model."""
        return sum(p.numel() for p in self.model.parameters())
