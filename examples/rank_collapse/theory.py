"""Uniform attention and linear feed-forward layers: what is known exactly (Noci et al. 2022), and the model itself.

With branches scaled by alpha, every sublayer adds to the tokens a random linear map of what it sees: attention of the
mean token, the feed-forward layer of each token. In the limit of infinite width only two numbers change with depth:

    s = E |x_i|², the size of a token             attention: s + alpha² c / n    feed-forward: s (1 + alpha²)
    c = E |Σ_i x_i|² / n, the size of their sum   attention: c (1 + alpha²)      feed-forward: c (1 + alpha²)

and the correlation of two tokens is rho = (c - s) / ((n - 1) s).

Shapes: n tokens, D features, L layers.
"""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from monitoring.activations import summarise_tokens, token_collapse

TOKENS, WIDTH = 64, 256


def expected_cosines(alpha: float, layers: int, tokens: int = TOKENS) -> NDArray[np.float64]:
    """(L,) rho after each layer, from tokens that begin uncorrelated."""
    s = c = 1.0
    rho = []
    for _ in range(layers):
        s, c = s + alpha**2 * c / tokens, c * (1 + alpha**2)  # attention; the feed-forward layer leaves c / s
        rho.append((c - s) / ((tokens - 1) * s))
    return np.array(rho)


@torch.no_grad()
def measured_cosines(
    alpha: float, layers: int, seed: int, tokens: int = TOKENS, width: int = WIDTH
) -> NDArray[np.float64]:
    """(L,) mean cosine of two tokens after each layer of the model with random weights of variance 1 / width."""
    generator = torch.Generator().manual_seed(seed)

    def draw(rows: int) -> Tensor:
        return torch.randn(rows, width, generator=generator)

    x_nD = draw(tokens)
    cosines = []
    for _ in range(layers):
        x_nD = x_nD + alpha * x_nD.mean(0) @ draw(width) / width**0.5
        x_nD = x_nD + alpha * x_nD @ draw(width) / width**0.5
        x_nD = x_nD / x_nD.square().mean().sqrt()  # at alpha = 1 the tokens double in every layer; cosines do not care
        cosines.append(token_cosine(x_nD[None]))
    return np.array(cosines)


def token_cosine(x_BTD: Tensor) -> float:
    """Mean cosine of two different tokens of a sequence, over a batch, as a run's monitor measures it."""
    cosine_B, _ = token_collapse(summarise_tokens(x_BTD)[None], x_BTD.shape[1])
    return float(cosine_B.mean())
