"""Texts of a column: Parquet files, and the Arrow files of which a saved Hugging Face dataset consists.

Read batch by batch, only the column that is asked for; pyarrow does it, `datasets` is not needed.
"""

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from configs.errors import DataError

if TYPE_CHECKING:
    import pyarrow

PARQUET, ARROW = ".parquet", ".arrow"
TABLE_SUFFIXES = (PARQUET, ARROW)
ROWS = 1024
END_OF_STREAM = b"\xff\xff\xff\xff\x00\x00\x00\x00"
SAVED_STATE, SAVED_INFO, SAVED_DICT = "state.json", "dataset_info.json", "dataset_dict.json"


def read_column(path: Path, column: str) -> Iterator[tuple[str, str, float]]:
    """(text, place for error messages, share of the file read so far) of each row; rows are counted from 0.

    Raises: DataError naming the file, and the row where it is one, if the column is missing or not of strings, a row
    has no value or is not UTF-8, or the file is damaged; OSError if it cannot be read.
    """
    row = 0
    with _damage(path):
        for batch, share in _parquet(path, column) if path.name.endswith(PARQUET) else _arrow(path, column):
            for value in batch:
                place = f"{path}: row {row}"
                try:
                    text = value.as_py()
                except UnicodeDecodeError as error:
                    raise DataError(f"{place}: not UTF-8 text ({error.reason}): convert or leave out") from error
                if text is None:
                    raise DataError(f"{place}: column {column!r} has no value (null): fill it or leave the row out")
                yield text, place, share
                row += 1


def saved_dataset_files(folder: Path, names: Sequence[str]) -> list[str] | None:
    """Names of the data files in a folder that `Dataset.save_to_disk` wrote; None if it is another one.

    Raises: DataError for a folder of several splits (`DatasetDict.save_to_disk`), or if a file is missing.
    """
    if SAVED_DICT in names:
        splits = _texts(folder / SAVED_DICT, "splits", lambda splits: splits)
        examples = " or ".join(str(folder / name) for name in splits)
        raise DataError(f"{folder}: a saved dataset of several splits: name the one to read: {examples}")
    if SAVED_STATE not in names or SAVED_INFO not in names:
        return None
    files = _texts(folder / SAVED_STATE, "_data_files", lambda files: [file["filename"] for file in files])
    for file in files:
        if file not in names:
            raise DataError(f"{folder / file}: missing: {folder / SAVED_STATE} names it")
    return files


def _texts(path: Path, key: str, names_in: Callable[[Any], Any]) -> list[str]:
    """The names that `names_in` finds in a field of a JSON file. Raises: DataError if they are no list of strings."""
    try:
        names = names_in(json.loads(path.read_text(encoding="utf-8"))[key])
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise DataError(f"{path}: damaged, or not of a saved dataset: no {key!r}") from error
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise DataError(f"{path}: damaged, or not of a saved dataset: {key!r} names no files or splits")
    return names


def _parquet(path: Path, column: str) -> Iterator[tuple["pyarrow.Array", float]]:
    from pyarrow import parquet

    with parquet.ParquetFile(path) as file:
        _check_column(path, file.schema_arrow, column)
        rows, total = 0, file.metadata.num_rows
        for batch in file.iter_batches(ROWS, columns=[column], use_threads=False):
            rows += batch.num_rows
            # By its name: of "text" beside "text.raw", or of a struct "text" with a "raw", pyarrow reads both.
            yield batch.column(column), rows / total


def _arrow(path: Path, column: str) -> Iterator[tuple["pyarrow.Array", float]]:
    """An Arrow stream, as `datasets` writes it."""
    from pyarrow import ArrowInvalid, ipc, memory_map

    with memory_map(str(path)) as source, ipc.open_stream(source) as stream:
        # Without this, a file cut between two batches would be taken for a shorter one.
        if source.read_at(len(END_OF_STREAM), source.size() - len(END_OF_STREAM)) != END_OF_STREAM:
            raise ArrowInvalid("it has no end")
        _check_column(path, stream.schema, column)
        for batch in stream:
            share = source.tell() / source.size()
            for start in range(0, batch.num_rows, ROWS):
                yield batch.column(column).slice(start, ROWS), share


def _check_column(path: Path, schema: "pyarrow.Schema", column: str) -> None:
    from pyarrow import types

    if column not in schema.names:
        columns = ", ".join(map(repr, schema.names[:8])) or "none"
        raise DataError(f"{path}: no column {column!r} (columns: {columns}): choose one with --text-field")
    if (count := schema.names.count(column)) > 1:
        raise DataError(f"{path}: {count} columns are called {column!r}: rename all but one")
    kind = schema.field(column).type
    if types.is_dictionary(kind):
        kind = kind.value_type
    if not (types.is_string(kind) or types.is_large_string(kind) or types.is_string_view(kind)):
        raise DataError(f"{path}: column {column!r} must be of strings, not {kind}")


@contextmanager
def _damage(path: Path) -> Iterator[None]:
    """Errors of pyarrow about what a file holds, as a user's error; the system's own pass."""
    from pyarrow import ArrowException

    try:
        yield
    except (ArrowException, OSError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise
        kind = "Parquet" if path.name.endswith(PARQUET) else "Arrow stream"
        raise DataError(f"{path}: damaged, or no {kind} file: {' '.join(str(error).split())[:200]}") from error
