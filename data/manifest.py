"""The manifest of a prepared dataset: what is in the folder, how it came about, and hashes to recognise it by."""

import hashlib
import json
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from configs.errors import DataError

MANIFEST = "manifest.json"
FORMAT_VERSION: Literal[1] = 1
SplitName = Literal["train", "validation"]
TokenDtype = Literal["uint16", "int32"]
TokenizerKind = Literal["byte", "bpe", "unigram", "sentencepiece", "huggingface"]
SPLITS: tuple[SplitName, ...] = ("train", "validation")


class _Record(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


class FileRecord(_Record):
    """A file of the dataset."""

    size: int
    """Bytes."""
    sha256: str


class SplitRecord(_Record):
    """One split: a Megatron indexed dataset with a sequence per document, each ended by the end-of-document id."""

    documents: int
    tokens: int
    """Tokens, end-of-document ids included."""
    bin: FileRecord
    idx: FileRecord


class TokenizerRecord(_Record):
    """The tokenizer of the dataset."""

    kind: TokenizerKind
    vocab_size: int
    eod: int
    hash: str
    file: str | None
    """The SentencePiece model, or the tokenizer.json, in the folder."""


class SourceRecord(_Record):
    """What one input contributed."""

    input: str
    documents: int
    bytes: int | None
    """UTF-8 bytes of text; None if it came as tokens."""


class Manifest(_Record):
    """What `manifest.json` says."""

    format_version: Literal[1] = FORMAT_VERSION
    tokenizer: TokenizerRecord
    token_dtype: TokenDtype
    """Type of the ids in the `.bin` files."""
    train: SplitRecord
    validation: SplitRecord
    sources: list[SourceRecord]
    validation_fraction: float
    seed: int
    """Key of the hash that sends a document to one split or the other."""
    recipe: str
    """Hash of the settings and of the input files' names, sizes and modification times."""
    fingerprint: str
    """Hash of everything above but the recipe."""

    def split(self, name: SplitName) -> SplitRecord:
        return self.train if name == "train" else self.validation


def fingerprint_of(fields: dict) -> str:
    """Fingerprint of a manifest given as plain JSON values; `recipe` and `fingerprint` do not count."""
    counted = {key: value for key, value in fields.items() if key not in ("recipe", "fingerprint")}
    return digest(counted)


def digest(value: object) -> str:
    """Stable hash of plain JSON values."""
    return hashlib.blake2b(json.dumps(value, sort_keys=True).encode(), digest_size=16).hexdigest()


def read_manifest(folder: Path) -> Manifest:
    """The manifest of a prepared dataset; reads no data.

    Raises: DataError if it is missing or damaged.
    """
    path = Path(folder) / MANIFEST
    try:
        fields = json.loads(path.read_text(encoding="utf-8"))
        manifest = Manifest.model_validate(fields)
    except FileNotFoundError as error:
        what = "not a finished dataset" if Path(folder).is_dir() else "no such dataset"
        raise DataError(f"{path}: missing, {what}: make it with `steadytrain prepare`") from error
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from error
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        place = ".".join(map(str, first["loc"])) or "top level"
        raise DataError(f"{path}: damaged, or of another format version: {place}: {first['msg']}") from error
    except ValueError as error:
        raise DataError(f"{path}: damaged: {error}") from error
    if fingerprint_of(fields) != manifest.fingerprint:
        raise DataError(f"{path}: damaged: its fields do not match its fingerprint")
    return manifest
