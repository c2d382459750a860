"""A model of ours with random parameters, as a checkpoint's plain weights, and the dense reference's logits of it."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from configs.schema import Config
from parallel.sharding import whole_tensors
from tests.layouts import VOCAB, config, single_topology
from tests.reference import DenseDecoder
from training.build import build_chunks

LENGTH = 16


@dataclass
class RandomWeights:
    """What `exchange.plain.PlainWeights` is to its users."""

    config: Config
    tensors: dict[str, Tensor]
    parameters: dict[str, Tensor]
    folder: Path = field(default=Path("random"))

    @property
    def names(self) -> list[str]:
        return list(self.tensors)

    def shape(self, name: str) -> tuple[int, ...]:
        return tuple(self.tensors[name].shape)

    def read(self, name: str) -> Tensor:
        return self.tensors[name].clone()

    def logits(self, tokens_BT: Tensor) -> Tensor:
        """The dense reference's, of live tokens."""
        parameters = {name: nn.Parameter(tensor) for name, tensor in self.parameters.items()}
        with torch.no_grad():
            return DenseDecoder(self.config, VOCAB, parameters).logits(tokens_BT)[..., :VOCAB]


def random_weights(seed: int = 0, **model: Any) -> RandomWeights:
    """Biases, norms and scales are anything but what they start as."""
    cfg = config(model={"layers": 2, **model}, training={"sequence_length": LENGTH})
    (decoder,) = build_chunks(cfg, single_topology(), VOCAB)
    torch.manual_seed(seed)
    tensors: dict[str, Tensor] = {}
    parameters: dict[str, Tensor] = {}
    for name, parameter in decoder.named_parameters():
        with torch.no_grad():
            parameter.copy_(_random(name, parameter))
            if name in ("embedding.weight", "head.weight"):
                parameter[VOCAB:] = 0
        parameters[name] = parameter.detach()
        tensors |= dict(whole_tensors(name, parameter.detach(), parameter.sharding, None))  # type: ignore[attr-defined]
    return RandomWeights(cfg, tensors, parameters)


def random_tokens(rows: int = 3) -> Tensor:
    return torch.randint(VOCAB, (rows, LENGTH), generator=torch.Generator().manual_seed(1))


def _random(name: str, parameter: Tensor) -> Tensor:
    noise = torch.randn(parameter.shape)
    if parameter.dim() == 2:
        return noise * 0.3
    return 0.3 * noise if name.endswith("bias") else 1 + 0.3 * noise
