"""Corpora: find the files an input names and read their documents, one after the other, in a fixed order.

A document is a text file, one line of a `.jsonl`, `.jsonl.gz` or `.jsonl.zst` file, or one row of a `.parquet` or
`.arrow` file. Empty documents and blank lines are left out. Text is kept exactly as it is: no newline translation, no
stripping.
"""

import glob
import gzip
import json
import os
import sysconfig
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from configs.errors import DataError
from data.tables import TABLE_SUFFIXES, read_column, saved_dataset_files

STDLIB = "stdlib"
JSONL_SUFFIXES = (".jsonl", ".jsonl.gz", ".jsonl.zst")
# Optional parts and tests: distributions install or omit them as they like, and some tests are not UTF-8 on purpose.
STDLIB_SKIPPED = frozenset({"site-packages", "dist-packages", "__pycache__", "test", "tests", "idle_test"})
BLOCK = 1 << 20
MAX_DOCUMENT = 2**31 - 1024  # an indexed dataset keeps lengths as int32


@dataclass(frozen=True)
class CorpusFile:
    """A file of a corpus. `name` is its path within the input that named it (the `source`-th)."""

    path: Path
    name: str
    source: int
    size: int
    modified_ns: int


@dataclass(frozen=True)
class Document:
    """A document of the corpus."""

    text: str
    size: int
    """UTF-8 bytes of `text`."""
    source: int
    """Index of the input it came from."""
    consumed: int
    """Bytes of files read up to and including this document (compressed ones where compressed)."""


def find(inputs: Sequence[str | Path]) -> list[CorpusFile]:
    """Files named by `inputs`, in the order of the inputs and sorted by path within each.

    An input is a file, a folder (all files below it, hidden ones left out; of a saved Hugging Face dataset its data
    files), a glob (`**` for any depth), or the word `stdlib`: the `*.py` files of the running Python's standard library
    without its tests and site-packages, its top-level modules before its packages.

    Raises: DataError if an input names nothing or a saved dataset of several splits, or if two name the same file.
    """
    files: list[CorpusFile] = []
    named_by: dict[Path, str] = {}
    for source, given in enumerate(map(str, inputs)):
        for path, name in _expand(given):
            real = path.resolve()
            if real in named_by:
                raise DataError(f"{path}: named twice, by {named_by[real]} and by {given}: name each file once")
            named_by[real] = given
            try:
                stat = path.stat()
            except OSError as error:
                raise DataError(f"{path}: cannot be read: {error.strerror}") from error
            files.append(CorpusFile(path, name, source, stat.st_size, stat.st_mtime_ns))
    return files


def documents(
    files: Sequence[CorpusFile], *, text_field: str = "text", max_bytes: int | None = None
) -> Iterator[Document]:
    """Documents of `files` in order; with `max_bytes`, the leading ones whose text fits in so many UTF-8 bytes.

    Raises: DataError naming file and line if a file cannot be read, decoded or parsed.
    """
    finished, taken = 0, 0
    for file in files:
        for text, place, consumed in _read(file, text_field):
            size = _utf8_size(text, place)
            if max_bytes is not None and taken + size > max_bytes:
                return
            if size > MAX_DOCUMENT:
                raise DataError(f"{place}: a document of {size} bytes: at most {MAX_DOCUMENT}; split it")
            taken += size
            yield Document(text, size, file.source, finished + consumed)
        finished += file.size


def _expand(given: str) -> list[tuple[Path, str]]:
    """(path, name within the input) of every file an input names, sorted by name."""
    if given == STDLIB:
        root = Path(sysconfig.get_path("stdlib"))
        found = [(path, name) for path, name in _walk(root, STDLIB_SKIPPED) if name.endswith(".py")]
        # Top-level modules first: the leading megabytes are then code and prose, not `encodings`' tables of characters.
        return sorted(found, key=lambda pair: ("/" in pair[1], pair[1]))
    if not given:
        raise DataError("input: must not be empty; the working folder is called .")
    path = Path(given)
    if path.exists() and not (path.is_dir() or path.is_file()):
        raise DataError(f"{given}: a pipe or a device: write it to a file first, a corpus is read more than once")
    if path.is_dir():
        found = _walk(path)
    elif path.exists():
        found = [(path, path.name)]
    else:
        # `include_hidden` stays off, as in a folder.
        found = [(Path(match), match) for match in sorted(glob.glob(given, recursive=True)) if os.path.isfile(match)]
    if not found:
        what = "holds no files" if path.is_dir() else "no such file or folder"
        raise DataError(
            f"{given}: {what} (an input is a text file, {', '.join((*JSONL_SUFFIXES, *TABLE_SUFFIXES))}, "
            f"a folder, a glob, or {STDLIB})"
        )
    return found


def _walk(root: Path, skipped: frozenset[str] = frozenset()) -> list[tuple[Path, str]]:
    """(path, name below `root`) of every file, sorted by name; not those in hidden or `skipped` folders."""
    found = []
    for folder, subfolders, names in os.walk(root):
        subfolders[:] = [name for name in subfolders if not name.startswith(".") and name not in skipped]
        saved = saved_dataset_files(Path(folder), names)
        paths = (Path(folder, name) for name in (names if saved is None else saved) if not name.startswith("."))
        found += [(path, path.relative_to(root).as_posix()) for path in paths if path.is_file()]
    return sorted(found, key=lambda pair: pair[1])


def _utf8_size(text: str, place: str) -> int:
    try:
        return len(text.encode())
    except UnicodeEncodeError as error:
        raise DataError(f"{place}: not Unicode text: {error.reason}") from error


def _read(file: CorpusFile, text_field: str) -> Iterator[tuple[str, str, int]]:
    """(text, place for error messages, bytes of the file read so far) of each non-empty document of a file."""
    if file.path.name.endswith(TABLE_SUFFIXES):
        yield from _read_table(file, text_field)
        return
    jsonl = file.path.name.endswith(JSONL_SUFFIXES)
    line_number = 0
    try:
        with open(file.path, "rb") as stream:
            if not jsonl:
                text = _decode(stream.read(), file.path, 1)
                if text:
                    yield text, str(file.path), file.size
                return
            for line_number, line in enumerate(_lines(file.path, stream), start=1):
                if not line.strip():
                    continue
                text = _parse(line, file.path, line_number, text_field)
                if text:
                    yield text, f"{file.path}:{line_number}", stream.tell()
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise DataError(f"{file.path}:{line_number + 1}: damaged gzip file: {error}") from error
    except OSError as error:
        raise DataError(f"{file.path}: cannot be read: {error.strerror or error}") from error


def _read_table(file: CorpusFile, text_field: str) -> Iterator[tuple[str, str, int]]:
    try:
        for text, place, share in read_column(file.path, text_field):
            if text:
                yield text, place, int(share * file.size)
    except OSError as error:
        raise DataError(f"{file.path}: cannot be read: {error.strerror or error}") from error


def _lines(path: Path, stream: BinaryIO) -> Iterator[bytes]:
    if path.name.endswith(".gz"):
        with gzip.open(stream) as lines:
            yield from lines
    elif path.name.endswith(".zst"):
        yield from _zstandard_lines(path, stream)
    else:
        yield from stream


def _zstandard_lines(path: Path, stream: BinaryIO) -> Iterator[bytes]:
    """Lines of a Zstandard file of one or more frames.

    The library's own stream reader takes a truncated file for a shorter one, hence frame by frame here.
    """
    import zstandard

    line_number, tail = 1, b""
    decompressor = zstandard.ZstdDecompressor().decompressobj()
    complete = True
    try:
        while block := stream.read(BLOCK):
            while block:
                lines = (tail + decompressor.decompress(block)).split(b"\n")
                tail = lines.pop()
                yield from lines
                line_number += len(lines)
                complete, block = decompressor.eof, decompressor.unused_data
                if complete:
                    decompressor = zstandard.ZstdDecompressor().decompressobj()
    except zstandard.ZstdError as error:
        raise DataError(f"{path}:{line_number}: damaged zstd file: {error}") from error
    if not complete:
        raise DataError(f"{path}:{line_number}: damaged zstd file: it ends within a frame")
    if tail:
        yield tail


def _decode(content: bytes, path: Path, first_line: int) -> str:
    try:
        return content.decode()
    except UnicodeDecodeError as error:
        line = first_line + content.count(b"\n", 0, error.start)
        byte = f"byte 0x{content[error.start]:02x}"
        raise DataError(f"{path}:{line}: not UTF-8 text ({error.reason}, {byte}): convert or leave out") from error


def _parse(line: bytes, path: Path, line_number: int, text_field: str) -> str:
    place = f"{path}:{line_number}"
    try:
        record = json.loads(_decode(line, path, line_number))
    except json.JSONDecodeError as error:
        raise DataError(f"{place}: not JSON: {error.msg} at column {error.colno}") from error
    except (RecursionError, ValueError) as error:
        raise DataError(f"{place}: JSON that cannot be read: {error}") from error
    if not isinstance(record, dict):
        raise DataError(f"{place}: a JSON object is needed, not {type(record).__name__}")
    if text_field not in record:
        fields = ", ".join(map(repr, list(record)[:8])) or "none"
        raise DataError(f"{place}: no field {text_field!r} (fields: {fields}): choose one with --text-field")
    if not isinstance(record[text_field], str):
        raise DataError(f"{place}: field {text_field!r} must be a string, not {type(record[text_field]).__name__}")
    return record[text_field]
