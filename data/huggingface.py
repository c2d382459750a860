"""Tokenizers of the Hugging Face library `tokenizers`: a `tokenizer.json`."""

import hashlib
import json
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from configs.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tokenizers import Tokenizer as FastTokenizer

FILE = "tokenizer.json"
CONFIG = "tokenizer_config.json"


def is_huggingface(path: Path) -> bool:
    """Whether a tokenizer's path names a `tokenizer.json`, or a folder that should hold one."""
    return path.is_dir() or path.suffix == ".json"


class HuggingFaceTokenizer:
    """A `tokenizer.json`; `eod`, the name or the id of one of its tokens, ends documents.

    Without `eod` it is the `eos_token` of the `tokenizer_config.json` beside the file. Only text is encoded: no token
    is added before or after it, and what spells a special token (`<|endoftext|>`, `[MASK]`) is encoded as any other
    text is. What the file says about truncation and padding does not count. Text comes back as normalised.

    Raises: DataError if `path` is no such file (or no folder that holds one), or the end of a document has no token.
    """

    def __init__(self, path: Path, eod: str | int | None = None) -> None:
        self.path = path / FILE if path.is_dir() else path
        try:
            content = self.path.read_bytes()
        except OSError as error:
            raise DataError(f"{self.path}: cannot be read: {error.strerror}") from error
        self._fast = _parse(content, self.path)
        self._fast.no_truncation()
        self._fast.no_padding()
        self._fast.encode_special_tokens = True
        vocabulary = self._fast.get_vocab(with_added_tokens=True)
        self.vocab_size = max(vocabulary.values(), default=-1) + 1
        self.eod = _find_eod(self.path, vocabulary, eod)
        self.hash = hashlib.sha256(content + b"eod %d" % self.eod).hexdigest()

    def encode(self, text: str) -> np.ndarray:
        """Raises: DataError if the text encodes to the end of a document, as some vocabularies have it."""
        ids = np.array(self._fast.encode(text, add_special_tokens=False).ids, dtype=np.int32)
        if (ids == self.eod).any():
            name = self._fast.id_to_token(self.eod)
            raise DataError(
                f"{self.path}: text that spells {name!r} becomes the end of a document in the middle of one: "
                "choose another token with --eod, or leave such documents out"
            )
        return ids

    def decode(self, ids: "Sequence[int] | np.ndarray") -> str:
        return self._fast.decode([int(token) for token in ids if token != self.eod])


def _parse(content: bytes, path: Path) -> "FastTokenizer":
    from tokenizers import Tokenizer as FastTokenizer

    try:
        return FastTokenizer.from_buffer(content)
    except Exception as error:  # the library raises nothing narrower
        reason = " ".join(str(error).split())[:200]
        raise DataError(f"{path}: not a tokenizer.json of Hugging Face tokenizers: {reason}") from error


def _find_eod(path: Path, vocabulary: dict[str, int], eod: str | int | None) -> int:
    if isinstance(eod, int):
        return eod
    config = path.with_name(CONFIG)
    name = eod if eod is not None else _eos_token(config)
    if name is None:
        raise DataError(f"{path}: which token ends a document? There is no eos_token in {config}: name it with --eod")
    if name not in vocabulary:
        where = "--eod" if eod is not None else f"{config}: eos_token"
        raise DataError(f"{where} = {name}: not a token of {path}; name one with --eod")
    return vocabulary[name]


def _eos_token(config: Path) -> str | None:
    """`eos_token` of a tokenizer_config.json: a string, or an added token with its `content`."""
    try:
        fields = json.loads(config.read_text(encoding="utf-8"))
        token = fields.get("eos_token")
        name = token["content"] if isinstance(token, dict) else token
    except FileNotFoundError:
        return None
    except OSError as error:
        raise DataError(f"{config}: cannot be read: {error.strerror}") from error
    except (ValueError, AttributeError, KeyError) as error:
        raise DataError(f"{config}: not a tokenizer configuration: {error}") from error
    return name if isinstance(name, str) else None
