"""The tokenizer and the data of a run, and how many bytes of text each token is."""

import json
import re
from typing import Self

import numpy as np

from configs.schema import DataSource
from data.huggingface import HuggingFaceTokenizer
from data.manifest import SplitName
from data.samples import Samples
from data.tokenizer import SPACE_MARK, ByteTokenizer, PieceTokenizer, Tokenizer
from exchange.origin import datasets
from exchange.plain import PlainWeights

BATTERY = ("a", " a", "the end\n\n\tx  = 1", "naïve 日本語 \U0001f468‍\U0001f469‍\U0001f467 e\u0301", "<0x41>")
"""Texts on which the bytes counted for a tokenizer.json must be those of its own decoder."""


def samples_of(weights: PlainWeights, split: SplitName) -> Samples:
    """What the run reads, where its data are now. Raises: DataError if they are gone."""
    training, sources = weights.config.training, weights.config.data.sources
    places = [
        DataSource(path=place, weight=source.weight)
        for source, (place, _) in zip(sources, datasets(weights), strict=True)
    ]
    return Samples(places, split, training.sequence_length, training.seed)


class TextBytes:
    """How many UTF-8 bytes of text tokens are, counted token by token, so that any window has an exact number.

    A character may be cut by the window's end: its bytes that are in the window count. The end of a document is no
    byte. Text is what the tokenizer's normalisation keeps, and the space that some put before a document is none of it.
    """

    def __init__(self, bytes_V: np.ndarray, eod: int, *, leading_space: bool) -> None:
        """`bytes_V`: of each token; `leading_space`: a document's first token has a space more than its text."""
        self._bytes_V, self._eod, self._leading_space = bytes_V, eod, leading_space

    @classmethod
    def of(cls, tokenizer: Tokenizer) -> Self | None:
        """None for a tokenizer whose tokens are no certain bytes: WordPiece, and others that tidy spaces up."""
        if isinstance(tokenizer, ByteTokenizer):
            bytes_V = np.ones(tokenizer.vocab_size, dtype=np.int64)
            bytes_V[tokenizer.eod] = 0
        elif isinstance(tokenizer, PieceTokenizer):
            bytes_V = _of_pieces(tokenizer)
        elif isinstance(tokenizer, HuggingFaceTokenizer):
            bytes_V = _of_fast(tokenizer)
        else:
            return None
        found = cls(bytes_V, tokenizer.eod, leading_space=int(bytes_V[tokenizer.encode("a")].sum()) == 2)
        return found if all(found._agrees(tokenizer, text) for text in BATTERY) else None

    def of_targets(self, windows_BT: np.ndarray) -> int:
        """Of all tokens of each window but the first."""
        targets_BT = windows_BT[:, 1:]
        size = int(self._bytes_V[targets_BT].sum())
        if self._leading_space:
            size -= int(((windows_BT[:, :-1] == self._eod) & (targets_BT != self._eod)).sum())
        return size

    def _agrees(self, tokenizer: Tokenizer, text: str) -> bool:
        ids = tokenizer.encode(text)
        return self.of_targets(np.array([[self._eod, *ids]])) == len(tokenizer.decode(ids).encode())


def _of_pieces(tokenizer: PieceTokenizer) -> np.ndarray:
    """Bytes of each piece of a SentencePiece model."""
    import sentencepiece

    model = sentencepiece.SentencePieceProcessor(model_file=str(tokenizer.path))
    sizes = []
    for token in range(tokenizer.vocab_size):
        if model.is_byte(token):
            sizes.append(1)
        elif model.is_control(token):
            sizes.append(0)
        elif model.is_unknown(token):
            sizes.append(len(tokenizer.decode([token]).encode()))
        else:
            sizes.append(len(model.id_to_piece(token).replace(SPACE_MARK, " ").encode()))
    return np.array(sizes)


def _of_fast(tokenizer: HuggingFaceTokenizer) -> np.ndarray:
    """Bytes of each token of a tokenizer.json, by what its decoder does: byte-level, or pieces with single bytes."""
    from tokenizers import Tokenizer as FastTokenizer

    fast = FastTokenizer.from_file(str(tokenizer.path))
    decoder = json.dumps(json.loads(fast.to_str())["decoder"], ensure_ascii=False)
    added = fast.get_added_tokens_decoder()
    space_mark = " " if SPACE_MARK in decoder else SPACE_MARK
    sizes = np.zeros(tokenizer.vocab_size, dtype=np.int64)
    for piece, token in fast.get_vocab(with_added_tokens=True).items():
        if token in added:
            sizes[token] = 0 if added[token].special else len(piece.encode())
        elif '"ByteLevel"' in decoder:
            sizes[token] = len(piece)  # a letter for each byte
        elif '"ByteFallback"' in decoder and re.fullmatch("<0x[0-9A-F]{2}>", piece):
            sizes[token] = 1
        else:
            sizes[token] = len(piece.replace(SPACE_MARK, space_mark).encode())
    return sizes
