"""The next token from its logits: the most probable one, or one drawn from a distribution cut to its likely part.

Shapes: B sequences, V tokens.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from configs.errors import ConfigError


@dataclass(frozen=True)
class Sampler:
    """Draws from softmax(x / temperature), cut to the `top_k` most probable tokens, then to the nucleus `top_p`.

    The order is that of Hugging Face transformers: top-p counts probabilities after the cut to k.
    """

    temperature: float = 1.0
    top_k: int | None = None
    top_p: float | None = None
    greedy: bool = False
    """Take the most probable token, of equals the first, instead."""

    def __post_init__(self) -> None:
        """Raises: ConfigError naming the option and what is allowed."""
        if not 0 < self.temperature < float("inf"):
            raise ConfigError(
                f"command line: --temperature = {self.temperature:g}: must be above 0; "
                "--greedy takes the most probable token"
            )
        if self.top_k is not None and self.top_k < 1:
            raise ConfigError(f"command line: --top-k = {self.top_k}: must be at least 1")
        if self.top_p is not None and not 0 < self.top_p <= 1:
            raise ConfigError(f"command line: --top-p = {self.top_p:g}: must be above 0 and at most 1")

    def __call__(self, logits_BV: Tensor, generators: Sequence[torch.Generator]) -> Tensor:
        """A token for each sequence, (B,) on the CPU, drawn with a generator (of the CPU) of its own."""
        if self.greedy:
            return logits_BV.argmax(-1).cpu()
        probabilities_BV = self.probabilities(logits_BV).cpu()
        drawn = [
            torch.multinomial(probabilities_V, 1, generator=generator)
            for probabilities_V, generator in zip(probabilities_BV, generators, strict=True)
        ]
        return torch.cat(drawn)

    def probabilities(self, logits_BV: Tensor) -> Tensor:
        """What is drawn from, (B, V) in fp32."""
        x_BV = logits_BV.float()
        # Centred, and over no less than fp32 can invert: no temperature makes infinities or 0 / 0.
        x_BV = (x_BV - x_BV.amax(-1, keepdim=True)) / max(self.temperature, torch.finfo(torch.float32).tiny)
        if self.top_k is not None:
            x_BV = keep_top_k(x_BV, self.top_k)
        if self.top_p is not None:
            x_BV = keep_top_p(x_BV, self.top_p)
        return x_BV.softmax(-1)


def keep_top_k(logits_BV: Tensor, k: int) -> Tensor:
    """-inf in place of logits below the k-th largest of their row; ties with it stay (Fan et al. 2018, section 5.1)."""
    smallest_B1 = logits_BV.topk(min(k, logits_BV.shape[-1])).values[:, -1:]
    return logits_BV.masked_fill(logits_BV < smallest_B1, float("-inf"))


def keep_top_p(logits_BV: Tensor, p: float) -> Tensor:
    """-inf outside the nucleus: the fewest most probable tokens whose probabilities reach p.

    Source: Holtzman et al. 2020, section 3.1. The most probable token always stays.
    """
    sorted_BV, order_BV = logits_BV.sort(descending=True, stable=True)
    probabilities_BV = sorted_BV.softmax(-1)
    before_BV = probabilities_BV.cumsum(-1) - probabilities_BV
    outside_BV = (before_BV >= p).index_fill(-1, torch.zeros(1, dtype=torch.long, device=logits_BV.device), False)
    return logits_BV.masked_fill(outside_BV.scatter(-1, order_BV, outside_BV), float("-inf"))
