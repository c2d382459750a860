"""Megatron indexed datasets (`.bin` with all tokens, `.idx` with the documents) through megatron-core."""

import hashlib
import os
import warnings
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

import numpy as np

from data.manifest import FileRecord, SplitRecord
from parallel.quiet import compiling_later

if TYPE_CHECKING:
    from megatron.core.datasets.indexed_dataset import IndexedDataset


def token_dtype(vocab_size: int) -> str:
    """Name of the narrowest type that megatron-core gives ids of such a vocabulary: uint16 or int32."""
    return _megatron().DType.optimal_dtype(vocab_size).__name__


def open_indexed(prefix: Path) -> "IndexedDataset":
    """The dataset `<prefix>.bin/.idx`, memory-mapped."""
    return _megatron().IndexedDataset(str(prefix), mmap=True)


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
    with warnings.catch_warnings(), compiling_later():
        warnings.filterwarnings("ignore", message="Transformer Engine and Apex are not installed")
        from megatron.core.datasets import indexed_dataset
    return indexed_dataset
