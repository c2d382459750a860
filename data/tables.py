"""Texts of a column: Parquet files, and the Arrow files of which a saved Hugging Face dataset consists.

Read batch by batch, only the column that is asked for; pyarrow does it, `datasets` is not needed.
"""

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

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
        splits = _field(folder / SAVED_DICT, "splits")
        examples = " or ".join(str(folder / name) for name in splits)
        raise DataError(f"{folder}: a saved dataset of several splits: name the one to read: {examples}")
    if SAVED_STATE not in names or SAVED_INFO not in names:
        return None
    files = [file["filename"] for file in _field(folder / SAVED_STATE, "_data_files")]
    for file in files:
        if file not in names:
            raise DataError(f"{folder / file}: missing: {folder / SAVED_STATE} names it")
    return files


def _field(path: Path, key: str) -> list:
    try:
        return json.loads(path.read_text(encoding="utf-8"))[key]
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path}: damaged, or not of a saved dataset: no {key!r}") from error


def _parquet(path: Path, column: str) -> Iterator[tuple["pyarrow.Array", float]]:
    from pyarrow import parquet

    with parquet.ParquetFile(path) as file:
        _check_column(path, file.schema_arrow, column)
        rows, total = 0, file.metadata.num_rows
        for batch in file.iter_batches(ROWS, columns=[column], use_threads=False):
            rows += batch.num_rows
            yield batch.column(0), rows / total


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
        raise DataError(f"{path}: no column {column!r} (columns: {columns}): choose one as the text field")
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
