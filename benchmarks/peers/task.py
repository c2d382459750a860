"""What every contender is given: the shape of the model, the same tokens, the same optimizer settings.

Shapes: B batch, T sequence.
"""

from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np
import torch
from torch import Tensor

LEARNING_RATE = 1e-3
BETAS = (0.9, 0.95)
EPSILON = 1e-8
WEIGHT_DECAY = 0.1
CLIP = 1.0


@dataclass(frozen=True)
class Task:
    """A model and how it is trained. The head is not tied to the embedding; there are no biases and no dropout."""

    family: Literal["gpt", "llama"]
    """`gpt`: LayerNorm, GELU, learned positions. `llama`: RMSNorm, SwiGLU, rotary positions, grouped queries."""
    width: int
    layers: int
    vocabulary: int
    length: int = 256
    batch: int = 8
    precision: Literal["fp32", "bf16"] = "fp32"
    tp: int = 1
    pp: int = 1
    head_size: int = 64
    seed: int = 0

    @property
    def heads(self) -> int:
        """Query heads."""
        return self.width // self.head_size

    @property
    def kv_heads(self) -> int:
        """Key and value heads: half of the query heads in the Llama family."""
        return self.heads if self.family == "gpt" else max(1, self.heads // 2)

    @property
    def inner(self) -> int:
        """Inner width of the feed-forward layer: 4 or about 8/3 times the width."""
        return 4 * self.width if self.family == "gpt" else -(-8 * self.width // (3 * 64)) * 64

    @property
    def micro_batch(self) -> int:
        """Sequences per forward pass: the whole batch, or a quarter of it in a pipeline of two."""
        return self.batch if self.pp == 1 else self.batch // (2 * self.pp)

    @property
    def tokens(self) -> int:
        """Tokens of a step."""
        return self.batch * self.length

    @property
    def label(self) -> str:
        """The cell of the table."""
        layout = "" if self.tp * self.pp == 1 else f" tp {self.tp} pp {self.pp}"
        return f"{self.family} d {self.width} V {self.vocabulary} {self.precision}{layout}"


class TokenArray:
    """Random tokens in memory, as a prepared dataset would hold them; sample k is the k-th stretch of T + 1."""

    def __init__(self, task: Task, samples: int = 256) -> None:
        self._length, self._batch, self._samples = task.length, task.batch, samples
        dtype = np.uint16 if task.vocabulary <= 2**16 else np.uint32
        draws = np.random.default_rng(task.seed).integers(task.vocabulary, size=samples * task.length + 1)
        self._tokens = draws.astype(dtype)

    def __getitem__(self, k: int) -> np.ndarray:
        """(T + 1,) int64."""
        start = k % self._samples * self._length
        return self._tokens[start : start + self._length + 1].astype(np.int64)

    def batch(self, step: int) -> tuple[Tensor, Tensor]:
        """(tokens, targets) of a step, each (B, T) int64; what `training.batches` gives one process."""
        samples = range(step * self._batch, (step + 1) * self._batch)
        tokens_BT = torch.stack([torch.from_numpy(self[k][:-1]) for k in samples])
        targets_BT = torch.stack([torch.from_numpy(self[k][1:]) for k in samples])
        return tokens_BT, targets_BT


class Contender(Protocol):
    """A trainer that takes one step after the other."""

    def step(self) -> float:
        """Data, forward, backward, clipping and update; the loss before it (0 on a rank that does not hold it)."""

    def parameters(self) -> int:
        """Parameters of the whole model."""
