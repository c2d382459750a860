"""Spectral norm and scale of every reparametrised matrix."""

from dataclasses import dataclass

import torch
from torch import Tensor

from monitoring.attention import gather_objects
from parallel.spectral import SpectralReparam
from parallel.topology import Topology


@dataclass(frozen=True)
class Spectra:
    """sigma(W) as power iteration tracks it, and gamma, by matrix name in model order."""

    names: list[str]
    sigma: list[float]
    gamma: list[float]


def collect_spectra(spectral: SpectralReparam, topology: Topology) -> Spectra | None:
    """Spectra of the whole model on the logging rank; None elsewhere, and without reparametrisation. Collective."""
    names = [matrix.name for matrix in spectral.matrices]
    sigma, gamma = (_numbers([getattr(matrix, name) for matrix in spectral.matrices]) for name in ("sigma", "gamma"))
    mine = list(zip(names, sigma, gamma, strict=True))
    parts = gather_objects(mine, topology)
    if parts is None:
        return None
    # Tensor-parallel ranks hold the same sigma and gamma: keep one of each name.
    rows = {row[0]: row for part in parts for row in part}
    if not rows:
        return None
    ordered = sorted(rows.values(), key=lambda row: _model_order(row[0]))
    return Spectra(*(list(column) for column in zip(*ordered, strict=True)))


def _numbers(scalars: list[Tensor]) -> list[float]:
    """Scalars on the host: one copy for all of them."""
    return torch.stack(scalars).tolist() if scalars else []


def _model_order(name: str) -> tuple[int, str]:
    """Layers by number, the head last."""
    parts = name.split(".")
    return (int(parts[1]), name) if parts[0] == "layers" else (1 << 30, name)
