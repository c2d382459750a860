"""What an indexed dataset of others must be like to be used as it is: found out by reading all of it once."""

import hashlib
from pathlib import Path

import numpy as np

from configs.errors import DataError
from data.indexed import DTYPE_CODES, HEADER, MAGIC, VERSION, hash_file
from data.manifest import FileRecord, SplitRecord, TokenDtype
from data.progress import Report
from data.tokenizer import Tokenizer

BLOCK = 4 << 20  # tokens
# megatron-core's codes of the types that it can write and `Tokens` does not read.
OTHER_TYPES = {1: "uint8", 2: "int8", 3: "int16", 5: "int64", 6: "float64", 7: "float32"}


def read_index(path: Path, bin_path: Path) -> tuple[TokenDtype, np.ndarray]:
    """(type of the tokens, where each document ends, in tokens) of an `.idx`.

    Raises: DataError if it is none, of a type that is not read, damaged, or not one sequence per document.
    """
    content = path.read_bytes()
    if len(content) < HEADER.size or content[: len(MAGIC)] != MAGIC:
        raise DataError(f"{path}: not the index of a Megatron dataset")
    _, version, code, sequences, borders = HEADER.unpack_from(content)
    dtype = next((name for name, known in DTYPE_CODES.items() if known == code), None)
    if version != VERSION or dtype is None:
        found = f"tokens of type {OTHER_TYPES.get(code, code)}" if version == VERSION else f"version {version}"
        raise DataError(f"{path}: {found}: must be version {VERSION} with tokens of type {' or '.join(DTYPE_CODES)}")
    if borders != sequences + 1:
        raise DataError(
            f"{path}: {borders - 1} documents of {sequences} sequences: each document must be one sequence: "
            "tokenise again without splitting sentences"
        )
    if len(content) != HEADER.size + 12 * sequences + 8 * borders:
        raise DataError(f"{path}: damaged, or of several modes: {len(content)} bytes do not fit {sequences} sequences")
    lengths = np.frombuffer(content, "<i4", sequences, HEADER.size)
    pointers = np.frombuffer(content, "<i8", sequences, HEADER.size + 4 * sequences)
    documents = np.frombuffer(content, "<i8", borders, HEADER.size + 12 * sequences)
    ends, itemsize = np.cumsum(lengths, dtype=np.int64), np.dtype(dtype).itemsize
    if sequences == 0 or (lengths < 1).any():
        raise DataError(f"{path}: no document, or an empty one: leave it out")
    if (documents != np.arange(borders)).any():
        raise DataError(f"{path}: documents are not one sequence each, in their order")
    if (pointers != (ends - lengths) * itemsize).any() or bin_path.stat().st_size != ends[-1] * itemsize:
        raise DataError(f"{path}: damaged, or not of {bin_path.name}: its documents do not fill that file")
    return dtype, ends


def look_through(
    path: Path, idx_path: Path, dtype: TokenDtype, ends: np.ndarray, tokenizer: Tokenizer, report: Report, done: int
) -> SplitRecord:
    """Read a `.bin`: its record, once every id is one of the tokenizer's and every document has its end.

    `ends` as `read_index` gives them; `done` bytes of the progress are behind.

    Ends of a document within documents are counted and said: the model learns that nothing goes on after them.

    Raises: DataError with the first token that does not fit.
    """
    hashed, start, found = hashlib.sha256(), 0, 0
    with open(path, "rb") as stream:
        while content := stream.read(BLOCK * np.dtype(dtype).itemsize):
            hashed.update(content)
            tokens = np.frombuffer(content, dtype)
            _check_ids(path, tokens, start, tokenizer)
            first, last = np.searchsorted(ends, [start + 1, start + len(tokens) + 1])
            _check_ends(path, tokens[ends[first:last] - 1 - start], int(first), tokenizer)
            start += len(tokens)
            found += int((tokens == tokenizer.eod).sum())
            report.advance_to(done + stream.tell())
    if found > len(ends):
        report.say(
            f"{path}: {found - len(ends):,} of its {found:,} ends of a document (token {tokenizer.eod}) stand within "
            f"documents, as if these were {found:,} and not {len(ends):,}: used as it is"
        )
    if empty := int((np.diff(ends, prepend=0) == 1).sum()):
        report.say(f"{path}: {empty:,} of its {len(ends):,} documents are empty, their end alone: used as it is")
    return SplitRecord(
        documents=len(ends),
        tokens=int(ends[-1]),
        bin=FileRecord(size=path.stat().st_size, sha256=hashed.hexdigest()),
        idx=FileRecord(size=idx_path.stat().st_size, sha256=hash_file(idx_path)),
    )


def _check_ids(path: Path, tokens: np.ndarray, start: int, tokenizer: Tokenizer) -> None:
    if tokens.max() >= tokenizer.vocab_size or tokens.min() < 0:
        wrong = int(np.argmax((tokens >= tokenizer.vocab_size) | (tokens < 0)))
        raise DataError(
            f"{path}: token {start + wrong} is {tokens[wrong]}: the tokenizer has ids 0 to {tokenizer.vocab_size - 1}: "
            "these tokens are another tokenizer's"
        )


def _check_ends(path: Path, last_tokens: np.ndarray, first: int, tokenizer: Tokenizer) -> None:
    wrong = np.flatnonzero(last_tokens != tokenizer.eod)
    if len(wrong):
        raise DataError(
            f"{path}: document {first + wrong[0]} ends with token {last_tokens[wrong[0]]}, not with {tokenizer.eod}, "
            "the tokenizer's end of a document: tokenise with it (Megatron's --append-eod), or name another tokenizer"
        )
