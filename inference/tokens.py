"""The tokenizer and the data of a run, and how many bytes of text each token is."""

from pathlib import Path

import numpy as np

from configs.errors import DataError
from configs.schema import DataSource
from data.manifest import SplitName
from data.samples import Samples
from data.tokenizer import SPACE_MARK, ByteTokenizer, PieceTokenizer, Tokenizer
from exchange.origin import datasets, tokenizer_of
from exchange.plain import PlainWeights


def run_tokenizer(weights: PlainWeights, named: Path | None) -> Tokenizer:
    """The tokenizer of the data that the run was trained on, or `named`, its file.

    Raises: ConfigError, DataError: the data are gone or prepared anew since, or the tokenizer is of another size.
    """
    tokenizer = tokenizer_of(weights, named)
    if named is None:
        samples_of(weights, "train")
    return tokenizer


def samples_of(weights: PlainWeights, split: SplitName) -> Samples:
    """What the run read, where its data are now. Raises: DataError if they are gone, or prepared anew since."""
    training, sources = weights.config.training, weights.config.data.sources
    places = [
        DataSource(path=place, weight=source.weight)
        for source, (place, _) in zip(sources, datasets(weights), strict=True)
    ]
    trained_on = Samples(places, "train", training.sequence_length, training.seed)
    if trained_on.fingerprint != weights.manifest.data_fingerprint:
        folders = ", ".join(str(place.path) for place in places)
        raise DataError(f"{folders}: not the data that {weights.folder} was trained on: prepared anew since")
    return trained_on if split == "train" else Samples(places, split, training.sequence_length, training.seed)


class TextBytes:
    """How many UTF-8 bytes of text tokens are, counted token by token, so that any window has an exact number.

    A character may be cut by the window's end: its bytes that are in the window count. The end of a document is no
    byte. Of a SentencePiece model, text is what its normalisation keeps, and the space that some models put before a
    document is none of it.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        """Raises: DataError for a tokenizer whose tokens are no known bytes."""
        self._eod = tokenizer.eod
        self._leading_space = False
        if isinstance(tokenizer, ByteTokenizer):
            self._bytes_V = np.ones(tokenizer.vocab_size, dtype=np.int64)
            self._bytes_V[tokenizer.eod] = 0
        elif isinstance(tokenizer, PieceTokenizer):
            self._bytes_V, self._leading_space = _of_pieces(tokenizer)
        else:
            raise DataError(f"{type(tokenizer).__name__}: bits per byte are not known of this kind of tokenizer")

    def of_targets(self, windows_BT: np.ndarray) -> int:
        """Of all tokens of each window but the first."""
        targets_BT = windows_BT[:, 1:]
        size = int(self._bytes_V[targets_BT].sum())
        if self._leading_space:
            size -= int(((windows_BT[:, :-1] == self._eod) & (targets_BT != self._eod)).sum())
        return size


def _of_pieces(tokenizer: PieceTokenizer) -> tuple[np.ndarray, bool]:
    """(bytes of each piece, whether the model puts a space before a text)."""
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
    return np.array(sizes), model.encode("a", out_type=str)[0].startswith(SPACE_MARK)
