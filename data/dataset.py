"""Prepared datasets, opened for reading: every damage is found before training, not during it."""

import os
from pathlib import Path

import numpy as np

from configs.errors import DataError
from data.indexed import DTYPE_CODES, HEADER, MAGIC, VERSION, Index, Tokens, hash_file
from data.manifest import SPLITS, FileRecord, Manifest, SplitName, read_manifest
from data.tokenizer import load

HASHED_SIZE = 256 << 20
PROBED_DOCUMENTS = 16


class Split:
    """The tokens of one split as one long sequence, a Megatron indexed dataset on the disk.

    Opening checks the manifest, the file sizes, the index, and the end of a few documents; up to 256 MiB also the
    SHA-256 of every byte (`verify` does so at any size). Its time and memory do not grow with the data beyond that,
    nor does the process with what it reads (`benchmarks.data` measures both).

    Raises: DataError naming the file that is missing, damaged or not the manifest's.
    """

    def __init__(self, folder: Path, name: SplitName) -> None:
        self.folder, self.name = Path(folder), name
        self.manifest = read_manifest(folder)
        record = self.manifest.split(name)
        self.tokens, self.documents = record.tokens, record.documents
        _check_files(self.folder, self.manifest, name, hashed=record.bin.size + record.idx.size <= HASHED_SIZE)
        self._itemsize = np.dtype(self.manifest.token_dtype).itemsize
        self._tokens = Tokens(self.folder / f"{name}.bin", self.manifest.token_dtype)
        self._index = Index(self.folder / f"{name}.idx", self.documents, self._itemsize)
        self._check_documents()

    def read(self, start: int, count: int) -> np.ndarray:
        """Tokens [start, start + count) as int64; document borders are crossed.

        Raises: IndexError outside the split.
        """
        if start < 0 or count < 0 or start + count > self.tokens:
            raise IndexError(f"tokens {start} to {start + count} are outside the {self.tokens} of {self.folder}")
        return self._tokens.read(start, count)

    def documents_in(self, start: int, count: int) -> tuple[int, list[int]]:
        """(first document of tokens [start, start + count), where it and each later one there begin, in tokens).

        Raises: IndexError outside the split, or if no token is asked for.
        """
        if start < 0 or count < 1 or start + count > self.tokens:
            raise IndexError(f"tokens {start} to {start + count} are outside the {self.tokens} of {self.folder}")
        first, last = self._index.document_at(start), self._index.document_at(start + count - 1)
        return first, [self._index.start(document) for document in range(first, last + 1)]

    def _check_documents(self) -> None:
        """The index must tile the tokens, and a document end where the index says; probed at a few documents."""
        index, itemsize = self._index, self._itemsize
        size = self.tokens * itemsize
        idx_path, bin_path = self.folder / f"{self.name}.idx", self.folder / f"{self.name}.bin"
        for document in sorted({round(x) for x in np.linspace(0, self.documents - 1, PROBED_DOCUMENTS)}):
            start, length = index.pointer(document), index.length(document)
            following = size if document == self.documents - 1 else index.pointer(document + 1)
            tiles = start + length * itemsize == following <= size and 0 <= start < following
            if not tiles or (start != 0 and document == 0):
                raise DataError(f"{idx_path}: damaged: document {document} does not end where the next begins")
            if not index.is_one_sequence(document):
                raise DataError(f"{idx_path}: damaged: document {document} is not one sequence")
            if self.read(following // itemsize - 1, 1)[0] != self.manifest.tokenizer.eod:
                raise DataError(f"{bin_path}: not the file of this dataset: document {document} has no end")


def check(folder: Path) -> Manifest:
    """Open both splits and the tokenizer of a prepared dataset.

    Raises: DataError naming what is missing or damaged.
    """
    for name in SPLITS:
        Split(folder, name)
    load(folder)
    return read_manifest(folder)


def verify(folder: Path) -> Manifest:
    """Read every byte of a prepared dataset, its tokenizer included, and compare with the manifest.

    Raises: DataError naming the first file that is missing or differs.
    """
    manifest = read_manifest(folder)
    for name in SPLITS:
        _check_files(Path(folder), manifest, name, hashed=True)
    return check(folder)


def _check_files(folder: Path, manifest: Manifest, name: SplitName, *, hashed: bool) -> None:
    record = manifest.split(name)
    for path, file in ((folder / f"{name}.idx", record.idx), (folder / f"{name}.bin", record.bin)):
        _check_file(path, file, hashed=hashed)
    idx_path = folder / f"{name}.idx"
    idx_size = HEADER.size + 12 * record.documents + 8 * (record.documents + 1)
    if (record.idx.size, record.bin.size) != (idx_size, record.tokens * np.dtype(manifest.token_dtype).itemsize):
        raise DataError(f"{idx_path}: damaged: sizes do not fit the counts of the manifest")
    with open(idx_path, "rb") as stream:
        header = stream.read(HEADER.size)
        stream.seek(-8, os.SEEK_END)
        last_document = stream.read()
    expected = (MAGIC, VERSION, DTYPE_CODES[manifest.token_dtype], record.documents, record.documents + 1)
    if HEADER.unpack(header) != expected or int.from_bytes(last_document, "little") != record.documents:
        raise DataError(f"{idx_path}: damaged: not the index of {record.documents} {manifest.token_dtype} documents")


def _check_file(path: Path, record: FileRecord, *, hashed: bool) -> None:
    again = "prepare the dataset again"
    try:
        size = path.stat().st_size
        if size != record.size:
            raise DataError(f"{path}: damaged: {size} bytes, the manifest says {record.size}: {again}")
        if hashed and hash_file(path) != record.sha256:
            raise DataError(f"{path}: damaged, or of another dataset: its SHA-256 is not the manifest's: {again}")
    except FileNotFoundError as error:
        raise DataError(f"{path}: missing: {again}") from error
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from error
