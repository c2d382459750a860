"""The project's decoder at initialisation: how alike its tokens are after each of many layers.

Shapes: B sequences, T tokens, D features, L layers.
"""

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from configs.schema import ModelConfig
from examples.rank_collapse.theory import token_cosine
from model.decoder import Decoder
from parallel.linear import LinearSpec
from parallel.topology import TensorParallel

DEPTH, LENGTH, SEQUENCES, VOCABULARY = 64, 64, 4, 256
NORMS: dict[str, dict[str, Any]] = {
    "no norm": {"norm": "none"},
    "pre-LN": {"norm_placement": "pre"},
    "post-LN": {"norm_placement": "post"},
    "peri-LN": {"norm_placement": "peri"},
    "reordered": {"norm_placement": "reordered"},
}
SCALINGS: dict[str, dict[str, Any]] = {"plain": {}, "1/sqrt(L)": {"residual": {"kind": "depth"}}}


def model_config(norm: str, scaling: str, layers: int = DEPTH) -> ModelConfig:
    """Width 64, 4 heads; weights of Xavier's variance, as the paper has them, and embeddings of size 1."""
    shape = {"layers": layers, "hidden_size": 64, "heads": 4, "positions": "learned"}
    start = {"init": "xavier", "init_std": 1.0}
    return ModelConfig.model_validate(shape | start | NORMS[norm] | SCALINGS[scaling])


@torch.no_grad()
def decoder_cosines(config: ModelConfig, seed: int) -> NDArray[np.float64]:
    """(L,) mean cosine of two tokens of a sequence of random tokens, after each layer."""
    spec = LinearSpec(TensorParallel(), seed)
    decoder = Decoder(config, spec, vocab_size=VOCABULARY, length=LENGTH, layers=range(config.layers))
    cosines: list[float] = []

    def see(_: int, x_BTD: Tensor) -> None:
        cosines.append(token_cosine(x_BTD))

    decoder.layer_probe = see
    decoder(torch.randint(VOCABULARY, (SEQUENCES, LENGTH), generator=torch.Generator().manual_seed(seed)))
    return np.array(cosines)
