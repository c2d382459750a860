"""The training loop that nanoGPT made usual, around any model of plain PyTorch."""

import torch
from torch import Tensor, nn

from benchmarks.peers.autocast import autocast
from benchmarks.peers.task import BETAS, CLIP, EPSILON, LEARNING_RATE, WEIGHT_DECAY, Task, TokenArray


class Loop:
    """AdamW with decay of matrices only, whose fused form nanoGPT takes on CUDA and not on CPUs."""

    def __init__(self, task: Task, model: nn.Module) -> None:
        self.model = model
        self._tokens = TokenArray(task)
        self._precision = task.precision
        matrices = [p for p in self.model.parameters() if p.ndim >= 2]
        vectors = [p for p in self.model.parameters() if p.ndim < 2]
        groups = [{"params": matrices, "weight_decay": WEIGHT_DECAY}, {"params": vectors, "weight_decay": 0.0}]
        self._optimizer = torch.optim.AdamW(groups, lr=LEARNING_RATE, betas=BETAS, eps=EPSILON)
        self._step = 0

    def loss(self, tokens_BT: Tensor, targets_BT: Tensor) -> Tensor:
        """The model's own loss."""
        return self.model(tokens_BT, targets_BT)

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
