"""Where a sample comes from: its window of a prepared dataset, the documents in it, and its text."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from data.samples import Samples
from data.tokenizer import load


@dataclass(frozen=True)
class Piece:
    """The part of one document that lies in a sample: tokens `start` to `start + tokens` of the document."""

    document: int
    start: int
    tokens: int


@dataclass(frozen=True)
class Located:
    """A sample's place: window `window` of a source, from token `offset` of its split; its documents in order."""

    sample: int
    source: int
    folder: Path
    window: int
    offset: int
    pieces: tuple[Piece, ...]


def locate(samples: Samples, k: int) -> Located:
    """Where sample k comes from. Its last token is a target only. Raises: IndexError if k is negative."""
    source, window, offset = samples.locate(k)
    split, end = samples.split(source), offset + samples.sequence_length + 1
    first, starts = split.documents_in(offset, end - offset)
    ends = [*starts[1:], end]
    pieces = [
        Piece(first + i, max(offset - start, 0), min(stop, end) - max(start, offset))
        for i, (start, stop) in enumerate(zip(starts, ends, strict=True))
    ]
    return Located(k, source, split.folder, window, offset, tuple(pieces))


class Reader:
    """The text of samples; opens each source's tokenizer once."""

    def __init__(self, samples: Samples) -> None:
        self._samples = samples
        self._tokenizer = load(samples.split(0).folder)  # the same for all sources: `Samples` refuses others

    def text(self, k: int) -> str:
        """The text of sample k; where one document ends and the next begins there is nothing."""
        return self._tokenizer.decode(self._samples[k])


def sample_table(samples: Samples, ids: np.ndarray) -> dict[str, np.ndarray]:
    """Arrays shaped like `ids` for a record: source, window and offset of each sample, its first and last document,
    and the token of the first document with which it begins."""
    names = ("source", "window", "offset", "first_document", "last_document", "document_offset")
    rows = []
    for k in ids.ravel():
        at = locate(samples, int(k))
        first, last = at.pieces[0], at.pieces[-1]
        rows.append((at.source, at.window, at.offset, first.document, last.document, first.start))
    columns = np.array(rows, dtype=np.int64).reshape(-1, len(names)).T
    return {name: column.reshape(ids.shape) for name, column in zip(names, columns, strict=True)}
