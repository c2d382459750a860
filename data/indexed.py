"""Megatron indexed datasets: `.bin` with all tokens, `.idx` with the documents. megatron-core writes them.

Reading is our own: megatron-core takes seconds to import, and its memory maps make every page that was ever read part
of the process, and a search in the index (whose numbers are not aligned) a copy of it.
"""

import hashlib
import os
import struct
import weakref
from bisect import bisect_right
from pathlib import Path
from types import ModuleType

import numpy as np

from configs.errors import DataError
from data.manifest import FileRecord, SplitRecord, TokenDtype
from parallel.quiet import importing_megatron

HEADER = struct.Struct("<9sQBQQ")  # magic, version, dtype code, sequences, documents + 1
MAGIC = b"MMIDIDX\x00\x00"
VERSION = 1
DTYPE_CODES: dict[TokenDtype, int] = {"int32": 4, "uint16": 8}


def token_dtype(vocab_size: int) -> str:
    """Name of the narrowest type that megatron-core gives ids of such a vocabulary: uint16 or int32."""
    return _megatron().DType.optimal_dtype(vocab_size).__name__


class _File:
    """A file that is read in places: what is read does not stay in the process, and threads may share it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._descriptor = os.open(path, os.O_RDONLY)
        weakref.finalize(self, os.close, self._descriptor)

    def read(self, offset: int, size: int) -> bytes:
        """Bytes [offset, offset + size). Raises: DataError: the file is shorter than that, or unreadable."""
        content = b""
        while len(content) < size:  # Linux reads 2 GiB at most at a time
            try:
                more = os.pread(self._descriptor, size - len(content), offset + len(content))
            except OSError as error:
                raise DataError(f"{self.path}: cannot be read: {error.strerror}") from error
            if not more:
                raise DataError(f"{self.path}: damaged: it ends before byte {offset + size}")
            content = content + more if content else more
        return content


class Tokens:
    """The `.bin` of a split. Raises: OSError if it cannot be opened."""

    def __init__(self, path: Path, dtype: str) -> None:
        self._file, self._dtype = _File(path), np.dtype(dtype)

    def read(self, start: int, count: int) -> np.ndarray:
        """Tokens [start, start + count), int64. Raises: DataError if the file has become shorter than that."""
        content = self._file.read(start * self._dtype.itemsize, count * self._dtype.itemsize)
        return np.frombuffer(content, self._dtype).astype(np.int64)


class Index:
    """The `.idx` of a split, of which only what is asked for is read; document i is sequence i.

    Raises: OSError if it cannot be opened; reading, DataError if it is too short for its documents.
    """

    def __init__(self, path: Path, documents: int, itemsize: int) -> None:
        self._file, self._documents, self._itemsize = _File(path), documents, itemsize
        self._pointers = HEADER.size + 4 * documents
        self._ends = self._pointers + 8 * documents

    def pointer(self, document: int) -> int:
        """Where a document begins in the `.bin`, in bytes."""
        return self._number(self._pointers + 8 * document, 8)

    def start(self, document: int) -> int:
        """The first token of a document."""
        return self.pointer(document) // self._itemsize

    def length(self, document: int) -> int:
        """Tokens of a document."""
        return self._number(HEADER.size + 4 * document, 4)

    def is_one_sequence(self, document: int) -> bool:
        """Whether the index says so, as it does of every document that `SplitWriter` has written."""
        return self._number(self._ends + 8 * (document + 1), 8) == document + 1

    def document_at(self, token: int) -> int:
        """The document that holds a token, by bisection."""
        return bisect_right(range(self._documents), token * self._itemsize, key=self.pointer) - 1

    def _number(self, offset: int, size: int) -> int:
        return int.from_bytes(self._file.read(offset, size), "little", signed=True)


class SplitWriter:
    """Write documents one by one to `<prefix>.bin/.idx`, one sequence each."""

    def __init__(self, prefix: Path, dtype: str) -> None:
        self._bin, self._idx = prefix.with_name(f"{prefix.name}.bin"), prefix.with_name(f"{prefix.name}.idx")
        self._builder = _megatron().IndexedDatasetBuilder(str(self._bin), dtype=np.dtype(dtype).type)
        self.documents, self.tokens = 0, 0

    def add(self, ids: np.ndarray) -> None:
        """Append a document, its end-of-document id included."""
        self._builder.add_document(ids, [len(ids)])
        self.documents += 1
        self.tokens += len(ids)

    def finish(self) -> SplitRecord:
        """Write the index and put both files on the disk."""
        self._builder.finalize(str(self._idx))
        return SplitRecord(documents=self.documents, tokens=self.tokens, bin=_settle(self._bin), idx=_settle(self._idx))

    def close(self) -> None:
        """Close the file, finished or not."""
        self._builder.data_file.close()


def hash_file(path: Path) -> str:
    """SHA-256 of a file."""
    with open(path, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def flush(path: Path) -> None:
    """Put a file or folder on the disk, so that a rename after it cannot survive a power cut alone."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _settle(path: Path) -> FileRecord:
    flush(path)
    return FileRecord(size=path.stat().st_size, sha256=hash_file(path))


def _megatron() -> ModuleType:
    with importing_megatron():
        from megatron.core.datasets import indexed_dataset
    return indexed_dataset
