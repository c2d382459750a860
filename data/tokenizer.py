"""Tokenizers: bytes, SentencePiece, or Hugging Face's (`data.huggingface`).

Bytes and what `data.piece_training` made turn any text into ids and back without loss; a file from elsewhere keeps what
its own normalisation keeps.
"""

import hashlib
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np

from configs.errors import ConfigError, DataError
from data.huggingface import HuggingFaceTokenizer, is_huggingface
from data.manifest import TokenizerKind, TokenizerRecord, read_manifest

if TYPE_CHECKING:
    from collections.abc import Sequence

# SentencePiece writes a space as this character and reads every one back as a space: real ones must go as bytes.
SPACE_MARK = "\u2581"


class Tokenizer(Protocol):
    """What the rest of the project asks of a tokenizer."""

    vocab_size: int
    """Number of ids, `eod` included."""
    eod: int
    """The id that ends a document; no text encodes to it."""
    hash: str
    """Equal for two tokenizers if and only if they encode alike."""

    def encode(self, text: str) -> np.ndarray:
        """Ids of a text, int32, without `eod`."""

    def decode(self, ids: "Sequence[int] | np.ndarray") -> str:
        """Text of ids; `eod` is left out, and bytes that are not UTF-8 become U+FFFD."""


class ByteTokenizer:
    """The UTF-8 bytes of the text as ids 0 to 255, and 256 for the end of a document."""

    vocab_size = 257
    eod = 256
    hash = hashlib.sha256(b"steadytrain byte tokenizer 1").hexdigest()

    def encode(self, text: str) -> np.ndarray:
        return np.frombuffer(text.encode(), dtype=np.uint8).astype(np.int32)

    def decode(self, ids: "Sequence[int] | np.ndarray") -> str:
        return bytes(int(token) for token in ids if token != self.eod).decode(errors="replace")


class PieceTokenizer:
    """A SentencePiece model; its end-of-sentence piece ends documents.

    Raises: DataError if `path` is not a SentencePiece model or has no end-of-sentence piece.
    """

    def __init__(self, path: Path) -> None:
        import sentencepiece

        self.path = path
        try:
            model = path.read_bytes()
        except OSError as error:
            raise DataError(f"{path}: cannot be read: {error.strerror}") from error
        try:
            self._processor = sentencepiece.SentencePieceProcessor(model_proto=model)
            self.vocab_size = self._processor.vocab_size()
        except RuntimeError as error:
            raise DataError(f"{path}: not a SentencePiece model") from error
        self.eod = self._processor.eos_id()
        if self.eod < 0:
            raise DataError(f"{path}: this SentencePiece model has no end-of-sentence piece, which ends documents")
        self.hash = hashlib.sha256(model).hexdigest()
        self._space_mark_ids = self._bytes_of_space_mark()

    def encode(self, text: str) -> np.ndarray:
        if SPACE_MARK not in text or not self._space_mark_ids:
            return np.array(self._processor.encode(text), dtype=np.int32)
        first, *others = text.split(SPACE_MARK)
        ids = self._processor.encode(first)
        for part in others:
            ids += self._space_mark_ids + self._processor.encode(part)
        return np.array(ids, dtype=np.int32)

    def decode(self, ids: "Sequence[int] | np.ndarray") -> str:
        return self._processor.decode([int(token) for token in ids if token != self.eod])

    @property
    def spells_space_mark(self) -> bool:
        """Whether `encode` spells the space mark in bytes and so keeps it apart from a space."""
        return bool(self._space_mark_ids)

    def _bytes_of_space_mark(self) -> list[int]:
        """Byte pieces that spell the space mark; none if the model has no bytes, or puts a space before a text."""
        processor = self._processor
        ids = [processor.piece_to_id(f"<0x{byte:02X}>") for byte in SPACE_MARK.encode()]
        adds_space = processor.encode("a", out_type=str)[0].startswith(SPACE_MARK)
        return ids if all(processor.is_byte(token) for token in ids) and not adds_space else []


def open_tokenizer(model: Path | None, eod: str | int | None = None) -> Tokenizer:
    """The byte tokenizer (`None`), the SentencePiece model in a file, or a Hugging Face tokenizer.json or its folder.

    `eod` is the end of a document in a tokenizer.json, by name or id; other tokenizers have their own.
    """
    if model is None:
        return ByteTokenizer()
    return HuggingFaceTokenizer(model, eod) if is_huggingface(model) else PieceTokenizer(model)


def kind_of(path: Path | None) -> TokenizerKind:
    """Kind of the tokenizer in a file or folder; None is the byte tokenizer."""
    if path is None:
        return "byte"
    return "huggingface" if is_huggingface(path) else "sentencepiece"


def check_eod(eod: str | None, path: Path | None) -> None:
    """Raises: ConfigError if an end of a document is named for a tokenizer that has its own."""
    if eod is not None and kind_of(path) != "huggingface":
        raise ConfigError(f"eod = {eod}: only for a tokenizer.json: {path or 'byte'} has an end of its own")


def copy_tokenizer(path: Path, folder: Path) -> Path:
    """Copy a tokenizer's file into a dataset. Raises: OSError."""
    copy = folder / ("tokenizer.json" if is_huggingface(path) else "tokenizer.model")
    shutil.copyfile(path / copy.name if path.is_dir() else path, copy)
    return copy


def describe(tokenizer: Tokenizer, kind: TokenizerKind, file: Path | None) -> TokenizerRecord:
    """The tokenizer as the manifest has it; `file` is the one in the dataset."""
    return TokenizerRecord(
        kind=kind,
        vocab_size=tokenizer.vocab_size,
        eod=tokenizer.eod,
        hash=tokenizer.hash,
        file=None if file is None else file.name,
    )


def load(folder: Path) -> Tokenizer:
    """Tokenizer of a prepared dataset.

    Raises: DataError if the dataset or its tokenizer is missing, damaged or not the one the data was made with.
    """
    described = read_manifest(folder).tokenizer
    tokenizer = open_tokenizer(None if described.file is None else folder / described.file, described.eod)
    if tokenizer.hash != described.hash:
        place = folder if described.file is None else folder / described.file
        raise DataError(f"{place}: not the tokenizer that {folder} was prepared with")
    return tokenizer
