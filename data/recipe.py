"""The recipe of a prepared dataset: all that decides what it holds."""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from configs.errors import ConfigError
from data.corpus import CorpusFile, Document, documents
from data.manifest import FORMAT_VERSION, SplitName, digest
from data.piece_training import TRAINED, TrainedKind
from data.tokenizer import check_eod, open_tokenizer


@dataclass(frozen=True)
class SplitRule:
    """Sends a document to a split by its content and the seed alone, so that equal documents share a split."""

    validation_fraction: float
    seed: int

    def split_of(self, text: str) -> SplitName:
        hashed = hashlib.blake2b(text.encode(), digest_size=8, key=b"split %d" % self.seed)
        share = int.from_bytes(hashed.digest(), "little") / 2**64
        return "validation" if share < self.validation_fraction else "train"


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Inputs and settings of a preparation.

    Raises: ConfigError for a setting out of range; DataError if `tokenizer` is a path but not of a tokenizer.
    """

    inputs: tuple[str, ...]
    files: tuple[CorpusFile, ...]
    tokenizer: str
    """`byte`, `bpe`, `unigram`, or the path of a SentencePiece model, of a tokenizer.json or of its folder."""
    eod: str | None
    """Name of the token that ends a document, if the tokenizer is a tokenizer.json."""
    vocab_size: int
    """Of a tokenizer to be trained."""
    split_rule: SplitRule
    max_bytes: int | None
    text_field: str

    def __post_init__(self) -> None:
        fraction = self.split_rule.validation_fraction
        if not 0 < fraction < 1:
            raise ConfigError(f"validation_fraction = {fraction}: must lie between 0 and 1")
        if self.max_bytes is not None and self.max_bytes < 1:
            raise ConfigError(f"max_bytes = {self.max_bytes}: must be at least 1")
        if self.trained and self.vocab_size < 300:
            raise ConfigError(f"vocab_size = {self.vocab_size}: must be at least 300 (256 of them are the bytes)")
        check_eod(self.eod, self.model)
        if self.model is not None:
            open_tokenizer(self.model, self.eod)

    @property
    def trained(self) -> TrainedKind | None:
        """Kind of the tokenizer to be trained."""
        return next((kind for kind in TRAINED if kind == self.tokenizer), None)

    @property
    def model(self) -> Path | None:
        """The file or folder given as `tokenizer`."""
        if self.tokenizer == "byte" or self.trained:
            return None
        if not Path(self.tokenizer).exists():
            raise ConfigError(
                f"tokenizer = {self.tokenizer}: must be byte, {', '.join(TRAINED)}, or the path of a .model file, "
                "of a tokenizer.json or of a folder that holds one"
            )
        return Path(self.tokenizer)

    @property
    def given_eod(self) -> int | None:
        """The end of a document in the tokenizer that is given; the copy in the dataset has no file beside it."""
        return None if self.model is None else open_tokenizer(self.model, self.eod).eod

    @property
    def hash(self) -> str:
        """Equal if the settings are, and the files' names, sizes and modification times."""
        tokenizer = self.tokenizer if self.model is None else open_tokenizer(self.model, self.eod).hash
        vocab_size = self.vocab_size if self.trained else None
        rule = [self.split_rule.validation_fraction, self.split_rule.seed]
        files = [[file.name, file.source, file.size, file.modified_ns] for file in self.files]
        settings = [tokenizer, vocab_size, rule, self.max_bytes, self.text_field, self.inputs]
        return digest([FORMAT_VERSION, settings, files])

    def documents(self) -> Iterator[Document]:
        return documents(self.files, text_field=self.text_field, max_bytes=self.max_bytes)

    @property
    def bytes_to_read(self) -> int:
        """Bytes of the files, or `max_bytes` if that is less: the length of the progress bar."""
        total = sum(file.size for file in self.files)
        return total if self.max_bytes is None else min(total, self.max_bytes)
