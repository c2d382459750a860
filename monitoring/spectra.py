"""Spectral norm and scale of every matrix, reparametrised or not."""

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from monitoring.gather import Labels
from parallel.spectral import SpectralReparam


def model_order(names: Iterable[str]) -> list[str]:
    """Matrices by layer, then by name; the head last."""
    return sorted(names, key=lambda name: (_layer(name), name))


def _layer(name: str) -> int:
    parts = name.split(".")
    return int(parts[1]) if parts[0] == "layers" else 1 << 30


class SpectraMonitor:
    """sigma(W) as power iteration tracks it, and gamma (NaN for plain matrices)."""

    def __init__(self, spectral: SpectralReparam, index: Mapping[str, int], seed: int) -> None:
        """`index`: the place of each matrix among those of the whole model."""
        self._spectral = spectral
        self._seed = seed
        self._matrices = [*spectral.matrices, *spectral.plain]
        labels = [(index[matrix.name],) for matrix in self._matrices]
        self.sums: Labels = {}
        self.maxima: Labels = {"sigma": labels, "gamma": labels}  # ranks that share a matrix hold the same two

    @torch.no_grad()
    def collect(self) -> dict[str, Tensor]:
        """`sigma` and `gamma` by label; one all-reduce over tensor-parallel ranks for plain matrices."""
        self._spectral.measure_plain(self._seed)
        nan = torch.full_like(self._matrices[0].sigma, torch.nan)
        return {
            "sigma": torch.stack([matrix.sigma for matrix in self._matrices]),
            "gamma": torch.stack([m.gamma if m.layer.reparametrised else nan for m in self._matrices]),
        }
