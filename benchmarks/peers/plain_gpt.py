"""A GPT-2 in plain PyTorch.

Shapes: B batch, T sequence, D width, V vocabulary, H heads, K head size.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.peers.loop import Loop
from benchmarks.peers.task import Task


class Block(nn.Module):
    """Pre-norm attention and GELU feed-forward: (B, T, D) -> (B, T, D). Source: Radford et al. 2019."""

    def __init__(self, task: Task) -> None:
        super().__init__()
        width = task.width
        self.heads = task.heads
        self.attention_norm = nn.LayerNorm(width, bias=False)
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.output = nn.Linear(width, width, bias=False)
        self.feedforward_norm = nn.LayerNorm(width, bias=False)
        self.up = nn.Linear(width, task.inner, bias=False)
        self.down = nn.Linear(task.inner, width, bias=False)

    def forward(self, x_BTD: Tensor) -> Tensor:
        x_BTD = x_BTD + self._attend(self.attention_norm(x_BTD))
        return x_BTD + self.down(F.gelu(self.up(self.feedforward_norm(x_BTD))))

    def _attend(self, x_BTD: Tensor) -> Tensor:
        batch, length, width = x_BTD.shape
        heads_BHTK = [
            part_BTD.view(batch, length, self.heads, width // self.heads).transpose(1, 2)
            for part_BTD in self.qkv(x_BTD).split(width, dim=-1)
        ]
        y_BHTK = F.scaled_dot_product_attention(*heads_BHTK, is_causal=True)
        return self.output(y_BHTK.transpose(1, 2).contiguous().view(batch, length, width))


class PlainGpt(nn.Module):
    """Tokens (B, T) and targets (B, T) -> mean cross-entropy."""

    def __init__(self, task: Task) -> None:
        super().__init__()
        self.embedding = nn.Embedding(task.vocabulary, task.width)
        self.positions = nn.Embedding(task.length, task.width)
        self.blocks = nn.ModuleList(Block(task) for _ in range(task.layers))
        self.final_norm = nn.LayerNorm(task.width, bias=False)
        self.head = nn.Linear(task.width, task.vocabulary, bias=False)
        self.apply(_initialise)

    def forward(self, tokens_BT: Tensor, targets_BT: Tensor) -> Tensor:
        position_T = torch.arange(tokens_BT.shape[1], device=tokens_BT.device)
        x_BTD = self.embedding(tokens_BT) + self.positions(position_T)
        for block in self.blocks:
            x_BTD = block(x_BTD)
        logits_BTV = self.head(self.final_norm(x_BTD))
        return F.cross_entropy(logits_BTV.view(-1, logits_BTV.shape[-1]), targets_BT.view(-1))


def _initialise(module: nn.Module) -> None:
    if isinstance(module, nn.Linear | nn.Embedding):
        nn.init.normal_(module.weight, std=0.02)


class PlainLoop(Loop):
    """The loop around this GPT."""

    def __init__(self, task: Task) -> None:
        torch.manual_seed(task.seed)
        super().__init__(task, PlainGpt(task))
