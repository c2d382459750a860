"""The series of a record that can be asked whether and when they moved, and the answer.

Shapes: S recorded steps, K peers (ranks that should behave alike), N places.
"""

import math
import warnings
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from stability.record import Record

Where = dict[str, int | str]
Scale = Literal["log", "signed log", "linear"]

THRESHOLD = 8.0
"""Robust standard deviations from where the steps before lead to that count as a movement."""
WINDOW = 32
"""Recorded steps before that a value is compared with. What lasts for half of them is how things now are."""
MINIMUM = 6
"""Values that a comparison needs."""
RECENT = 8
"""A movement belongs to an alarm if it lasts until so few recorded steps before it."""
GAP = 2
"""Recorded steps below the threshold that do not end a movement."""
TINY = 1e-30
MAD_TO_SD = 1.4826  # of a normal distribution


@dataclass(frozen=True)
class Kind:
    """How a quantity is called and compared; `floor` is the least standard deviation, on its scale, taken for real."""

    words: str
    scale: Scale
    floor: float


KINDS = {
    "lr": Kind("learning rate", "log", 0.05),
    "gradient": Kind("gradient norm", "log", 0.25),
    "sigma": Kind("sigma", "log", 0.05),
    "gamma": Kind("gamma", "signed log", 0.05),
    "measured.shard_rms": Kind("weight RMS", "log", 0.02),
    "measured.weight_rms": Kind("weight RMS", "log", 0.05),
    "measured.sigma": Kind("sigma", "log", 0.15),
    "measured.gamma": Kind("gamma", "signed log", 0.05),
    "measured.effective_norm": Kind("effective spectral norm", "log", 0.15),
    "measured.update_ratio": Kind("update-to-weight ratio", "log", 0.1),
    "measured.activation_rms": Kind("activation RMS", "log", 0.05),
    "measured.activation_grad_rms": Kind("RMS of the gradient of the activations", "log", 0.1),
    "measured.head_grad": Kind("query gradient", "log", 0.25),
    "measured.qk_grad_ratio": Kind("query-to-value gradient ratio", "log", 0.25),
    "measured.max_logit": Kind("largest attention logit", "linear", 10.0),
    "measured.entropy": Kind("attention entropy", "linear", 0.1),
    "measured.token_cosine": Kind("token cosine", "linear", 0.02),
    "measured.relative_residual": Kind("relative residual", "log", 0.05),
    "measured.tev": Kind("token embedding variability", "log", 0.05),
    "measured.log_z": Kind("log Z of the output", "linear", 0.1),
    "grad_norm": Kind("gradient norm of the model", "log", 0.1),
    "loss": Kind("loss", "linear", 0.02),
}
"""Causes before effects: of movements alike in step and size, the first here is named first."""

COVERED = ("measured.matrix", "measured.entropy_ratio", "measured.entropy_bound", "measured.grad_norm")
"""Other views of series that are there."""


@dataclass(frozen=True)
class Series:
    """One quantity of a record: values (S, K, N); `peers` says what tells the K apart, if anything does."""

    name: str
    kind: Kind
    steps: NDArray[np.int64]
    values_SKN: NDArray[np.float64]
    places: list[Where]
    held_KN: NDArray[np.bool_]
    peers: Literal["rank", "tp", ""] = ""
    only_up_N: NDArray[np.bool_] | None = None
    """Places of which a fall means nothing: the norm of a single number falls whenever that passes through zero."""


@dataclass(frozen=True)
class Movement:
    """How a series went until the alarm, and where it began to leave its course."""

    row_KN: NDArray[np.int64]
    """The first row of the movement under way when the alarm fired; -1 where there was none."""
    z_SKN: NDArray[np.float64]
    """Infinite for numbers that are not finite."""
    expected_SKN: NDArray[np.float64]
    """Where the steps before lead to, in the quantity's own units."""


def series_of(record: Record) -> list[Series]:
    """Everything of a record that may have moved, causes first; quantities without a `Kind` of their own last."""
    found = []
    unknown = [name for name in record.tracks if name.startswith("measured.") and name not in (*KINDS, *COVERED)]
    for name in (*KINDS, *unknown):
        if name not in record.tracks or (name in ("measured.sigma", "measured.gamma") and "sigma" in record.tracks):
            continue
        kind = KINDS.get(name) or Kind(name.removeprefix("measured.").replace("_", " "), "signed log", 0.1)
        track = record.tracks[name]
        if track.values.dtype.kind in "fiub" and track.values.ndim <= 3:
            found.append(_series(name, kind, record))
    return found


def movements(series: Series, until: int) -> Movement:
    """Which parts of a series were moving when the alarm fired at step `until`, and since which row."""
    rows = int((series.steps <= until).sum())
    shape = series.values_SKN.shape[1:]
    flat_SN = series.values_SKN[:rows].reshape(rows, -1)
    z_SN, expected_SN = robust_z(_scaled(flat_SN, series.kind.scale), series.kind.floor)
    if series.only_up_N is not None:
        z_SN = np.where(np.tile(series.only_up_N, shape[0]), np.maximum(z_SN, 0), z_SN)
    onset_KN = _onsets(np.abs(z_SN) > THRESHOLD).reshape(shape)
    return Movement(
        row_KN=np.where(series.held_KN, onset_KN, -1),
        z_SKN=z_SN.reshape(rows, *shape),
        expected_SKN=_unscaled(expected_SN, series.kind.scale).reshape(rows, *shape),
    )


def robust_z(values_SN: NDArray[np.float64], floor: float) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """(z, expected value) of each value by the median, trend and MAD of the values before it that had not moved.

    Leaving out what moved keeps the reference where it was while a movement lasts; the trend lets weights grow as they
    do without a word. z is infinite for values that are not finite, and 0 where too few values are there.
    """
    z_SN, expected_SN = np.zeros_like(values_SN), np.full_like(values_SN, np.nan)
    calm_SN = np.where(np.isfinite(values_SN), values_SN, np.nan)
    for row in range(len(values_SN)):
        history_WN = calm_SN[max(0, row - WINDOW) : row]
        # A past shorter than what has moved since says little: it would call the first bend of a young run a movement.
        known_N = np.isfinite(history_WN).sum(axis=0) >= max(MINIMUM, len(history_WN) / 2)
        if known_N.any():
            expected_SN[row, known_N], spread = _extrapolate(history_WN[:, known_N])
            deviation = values_SN[row, known_N] - expected_SN[row, known_N]
            z_SN[row, known_N] = deviation / np.maximum(spread, floor)
        z_SN[row] = np.where(np.isfinite(values_SN[row]), z_SN[row], np.inf)
        calm_SN[row] = np.where(np.abs(z_SN[row]) > THRESHOLD, np.nan, calm_SN[row])
    return z_SN, expected_SN


def _extrapolate(history_WN: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """(next value, spread) of columns with NaN where a value is left out.

    The slope is that between the medians of the two halves: nearly as steady as the median of all pairs' slopes.
    """
    rows = len(history_WN)
    age_W1 = np.arange(rows, 0, -1.0)[:, None]
    halves = np.array_split(history_WN, 2)
    enough_N = (np.isfinite(halves[0]).sum(axis=0) >= MINIMUM // 2) & (
        np.isfinite(halves[1]).sum(axis=0) >= MINIMUM // 2
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # of halves that are all NaN, which `enough_N` leaves out
        early_N, late_N = (np.nanmedian(half, axis=0) for half in halves)
    slope_N = np.where(enough_N, (late_N - early_N) / (rows / 2), 0.0)
    leveled_WN = history_WN + slope_N * age_W1
    expected_N = np.nanmedian(leveled_WN, axis=0)
    return expected_N, MAD_TO_SD * np.nanmedian(np.abs(leveled_WN - expected_N), axis=0)


def _onsets(moved_SN: NDArray[np.bool_]) -> NDArray[np.int64]:
    """The row at which the movement began that is still under way in the last rows; -1: there is none."""
    rows, columns = moved_SN.shape
    onset = np.full(columns, -1)
    for row in range(rows - 1, -1, -1):
        is_start = (onset < 0) & (row >= rows - RECENT)
        goes_on = (onset >= 0) & (onset - row <= GAP + 1)
        onset = np.where(moved_SN[row] & (is_start | goes_on), row, onset)
    return onset


def _series(name: str, kind: Kind, record: Record) -> Series:
    track = record.tracks[name]
    values = np.asarray(track.values, dtype=np.float64)
    if name == "gradient":
        names = [str(parameter) for parameter in record.labels["parameter"]]
        only_up_N = np.array([parameter.endswith(".gamma") for parameter in names])
        places = [_of_parameter(parameter) for parameter in names]
        return Series(name, kind, track.steps, values, places, record.labels["holds"], "rank", only_up_N)
    if name == "measured.shard_rms":
        places = [_of_matrix(str(matrix)) for matrix in record.labels["measured.matrix"]]
        values_SKN = values.transpose(0, 2, 1)  # recorded as (S, matrix, tp)
        return Series(name, kind, track.steps, values_SKN, places, np.ones(values_SKN.shape[1:], bool), "tp")
    places = _places(name, values.shape[1:], record)
    values_SKN = values.reshape(len(values), 1, len(places))
    there_KN = np.atleast_2d(~np.isnan(values_SKN).all(axis=0))  # a plain matrix has no gamma
    return Series(name, kind, track.steps, values_SKN, places, there_KN)


def _places(name: str, shape: tuple[int, ...], record: Record) -> list[Where]:
    """What each number of an array is of: the model, layers, matrices, or heads of layers."""
    if not shape:
        return [{}]
    if len(shape) == 2:
        return [{"layer": layer, "head": head} for layer in range(shape[0]) for head in range(shape[1])]
    matrices = record.labels.get("measured.matrix" if name.startswith("measured.") else "matrix", np.array([]))
    if len(matrices) == shape[0] and shape[0] != record.header.config["model"]["layers"]:
        return [_of_matrix(str(matrix)) for matrix in matrices]
    return [{"layer": layer} for layer in range(shape[0])]


def _of_parameter(name: str) -> Where:
    return {**_of_matrix(name.removesuffix(".weight")), "parameter": name}


def _of_matrix(name: str) -> Where:
    parts = name.split(".")
    return {"layer": int(parts[1]), "matrix": name} if parts[0] == "layers" else {"matrix": name}


def _scaled(values: NDArray[np.float64], scale: Scale) -> NDArray[np.float64]:
    if scale == "log":
        with np.errstate(invalid="ignore"):
            return np.log(np.maximum(values, TINY))
    return np.arcsinh(values) if scale == "signed log" else values


def _unscaled(values: NDArray[np.float64], scale: Scale) -> NDArray[np.float64]:
    if scale == "log":
        return np.where(values <= math.log(TINY), 0.0, np.exp(values))
    return np.sinh(values) if scale == "signed log" else values
