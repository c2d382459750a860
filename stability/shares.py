"""What the ranks bring to a record, put together: one set of tracks and labels for the whole model.

Shapes: S steps, R ranks, P parameters (parts of packed ones), M matrices.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stability.record import Track

Tracks = tuple[dict[str, Track], dict[str, NDArray[Any]]]
"""Tracks, and the labels of their axes."""


@dataclass(frozen=True)
class Share:
    """What one rank adds to a record."""

    parameters: list[str]
    gradients: Track
    matrices: list[str]
    spectra: Track | None
    """Rows sigma, gamma (2 M)."""
    random_state: str


def gradient_tracks(shares: list[Share]) -> Tracks:
    """Norms of all ranks side by side (S, R, P). Ranks note the same steps."""
    names = sorted(dict.fromkeys(name for share in shares for name in share.parameters), key=_model_order)
    column = {name: index for index, name in enumerate(names)}
    steps = shares[0].gradients.steps
    values_SRP = np.full((len(steps), len(shares), len(names)), np.nan, dtype=np.float32)
    holds_RP = np.zeros((len(shares), len(names)), dtype=bool)
    for rank, share in enumerate(shares):
        columns = [column[name] for name in share.parameters]
        values_SRP[:, rank, columns] = share.gradients.values
        holds_RP[rank, columns] = True
    return {"gradient": Track(steps, values_SRP)}, {"parameter": np.array(names), "holds": holds_RP}


def spectral_tracks(shares: list[Share]) -> Tracks:
    """Spectral norms and scales (S, M), from the rank of each pipeline stage that tells them."""
    told = [(share.matrices, share.spectra) for share in shares if share.spectra is not None and share.matrices]
    if not told:
        return {}, {}
    names = np.array([name for matrices, _ in told for name in matrices])
    order = sorted(range(len(names)), key=lambda index: _model_order(str(names[index])))
    halves = [np.split(track.values, 2, axis=1) for _, track in told]
    sigma_SM, gamma_SM = (np.concatenate([half[which] for half in halves], axis=1)[:, order] for which in (0, 1))
    steps = told[0][1].steps
    return {"sigma": Track(steps, sigma_SM), "gamma": Track(steps, gamma_SM)}, {"matrix": names[order]}


def measured_tracks(
    measured: Sequence[tuple[int, Mapping[str, NDArray[Any]]]],
) -> Tracks:
    """Every array that the monitors gave, at the steps at which it had the shape it has now."""
    rows: dict[str, list[tuple[int, NDArray[Any]]]] = {}
    labels: dict[str, NDArray[Any]] = {}
    for step, arrays in measured:
        for key, values in ((key, np.asarray(values)) for key, values in arrays.items()):
            if values.dtype.kind in "US":
                labels[f"measured.{key}"] = values
            else:
                rows.setdefault(f"measured.{key}", []).append((step, values))
    tracks = {}
    for key, pairs in rows.items():
        alike = [(step, values) for step, values in pairs if values.shape == pairs[-1][1].shape]
        tracks[key] = Track(np.array([step for step, _ in alike]), np.stack([values for _, values in alike]))
    return tracks, labels


def _model_order(name: str) -> int:
    """The embedding, layers by number, what comes after them; inside a layer, names stay as they come."""
    first, *rest = name.split(".")
    if first == "layers":
        return int(rest[0])
    return -1 if first in ("embedding", "positions") else 1 << 30
