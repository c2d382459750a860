"""Curves and cells out of block characters, readable without colour."""

from collections.abc import Sequence
from itertools import pairwise

import numpy as np

from monitoring.history import Values

BLOCKS = " ▁▂▃▄▅▆▇█"
CROSS = "\N{MULTIPLICATION SIGN}"
"""A loss that is no finite number; a collapsed head."""


def spark(value_C: Values, rows: int, *, log: bool = False) -> list[str]:
    """A curve of C columns, `rows` characters high, from the lowest to the highest finite value; top row first."""
    finite_C = np.isfinite(value_C)
    if not finite_C.any():
        return [" " * value_C.size] * (rows - 1) + [CROSS * value_C.size]
    scaled_C = np.log(value_C, where=finite_C, out=np.zeros_like(value_C)) if log else np.where(finite_C, value_C, 0)
    low, high = scaled_C[finite_C].min(), scaled_C[finite_C].max()
    share_C = (scaled_C - low) / (high - low) if high > low else np.zeros_like(scaled_C)
    level_C = 1 + np.round(share_C * (8 * rows - 1)).astype(int)
    lines = []
    for row in reversed(range(rows)):
        filled = [BLOCKS[level] for level in np.clip(level_C - 8 * row, 0, 8)]
        lines.append("".join(c if ok else CROSS if row == 0 else " " for c, ok in zip(filled, finite_C, strict=True)))
    return lines


def cell(share: float) -> str:
    """One character for a share of 0 to 1; a question mark for what is no number."""
    return BLOCKS[int(np.clip(np.ceil(share * 8), 1, 8))] if np.isfinite(share) else "?"


def columns_of(size: int, width: int) -> list[tuple[int, int]]:
    """The points (begin, end) of `size` that each of `width` columns shows; few points take several columns each."""
    borders = np.linspace(0, size, width + 1).round().astype(int).tolist()
    return [(min(begin, size - 1), max(end, begin + 1)) for begin, end in pairwise(borders)]


def means(value_S: Values, columns: Sequence[tuple[int, int]]) -> Values:
    """The mean of each column's finite values; NaN where it has none."""
    found = [value_S[begin:end] for begin, end in columns]
    return np.array([part[np.isfinite(part)].mean() if np.isfinite(part).any() else np.nan for part in found])
