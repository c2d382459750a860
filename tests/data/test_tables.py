import json
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from configs.errors import DataError
from data.corpus import documents, find
from data.prepare import prepare
from data.tables import END_OF_STREAM

TEXTS = [f"document {i} été 🙂\n\t" * (i % 7) for i in range(3000)]  # every seventh is empty


def write_jsonl(folder: Path, texts: list[str]) -> Path:
    path = folder / "corpus.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return path


def write_parquet(folder: Path, texts: list[str], kind: pa.DataType | None = None) -> Path:
    path = folder / "corpus.parquet"
    column = pa.array(texts, kind or pa.string())
    pq.write_table(pa.table({"id": list(range(len(texts))), "text": column}), path, row_group_size=700)
    return path


def write_arrow(folder: Path, texts: list[str]) -> Path:
    """As `Dataset.save_to_disk` leaves it, in two files."""
    saved = folder / "saved"
    saved.mkdir()
    names = ["data-00000-of-00002.arrow", "data-00001-of-00002.arrow"]
    for name, part in zip(names, (texts[:1100], texts[1100:]), strict=True):
        table = pa.table({"text": part, "id": list(range(len(part)))})
        with pa.OSFile(str(saved / name), "wb") as sink, pa.ipc.new_stream(sink, table.schema) as writer:
            writer.write_table(table, max_chunksize=500)
    (saved / "state.json").write_text(json.dumps({"_data_files": [{"filename": name} for name in names]}))
    (saved / "dataset_info.json").write_text("{}")
    return saved


WRITERS: dict[str, Callable[[Path, list[str]], Path]] = {
    "parquet": write_parquet,
    "large_string": lambda folder, texts: write_parquet(folder, texts, pa.large_string()),
    "dictionary": lambda folder, texts: write_parquet(folder, texts, pa.dictionary(pa.int32(), pa.string())),
    "saved": write_arrow,
}


@pytest.mark.parametrize("name", WRITERS)
def test_equal_documents_give_the_same_bytes(name: str, tmp_path: Path) -> None:
    given, lines = WRITERS[name](tmp_path, TEXTS), write_jsonl(tmp_path, TEXTS)
    for out, source in (("a", given), ("b", lines)):
        prepare([source], tmp_path / out, workers=1, max_bytes=100_000, progress=False)
    for file in ("train.bin", "train.idx", "validation.bin", "validation.idx"):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()


@pytest.mark.parametrize("name", WRITERS)
def test_progress_goes_to_the_last_byte(name: str, tmp_path: Path) -> None:
    files = find([WRITERS[name](tmp_path, TEXTS)])
    read = list(documents(files))
    assert [document.text for document in read] == [text for text in TEXTS if text]
    consumed = [document.consumed for document in read]
    assert consumed == sorted(consumed)
    assert len(set(consumed)) >= 3
    assert sum(file.size for file in files) - consumed[-1] in (0, len(END_OF_STREAM))


def test_members_of_folders_and_globs(tmp_path: Path) -> None:
    write_parquet(tmp_path, ["p"])
    write_arrow(tmp_path, ["a"] * 1100 + ["b"])
    write_jsonl(tmp_path, ["j"])
    assert [file.name for file in find([tmp_path])] == [
        "corpus.jsonl",
        "corpus.parquet",
        "saved/data-00000-of-00002.arrow",
        "saved/data-00001-of-00002.arrow",
    ]
    texts = [document.text for document in documents(find([f"{tmp_path}/*.parquet", f"{tmp_path}/saved/*1-of*.arrow"]))]
    assert texts == ["p", "b"]


@pytest.mark.slow
def test_what_datasets_writes(tmp_path: Path) -> None:
    import datasets

    dataset = datasets.Dataset.from_dict({"text": TEXTS, "id": list(range(len(TEXTS)))})
    dataset.save_to_disk(tmp_path / "one", num_shards=3)
    dataset.select([5, 3, 4]).save_to_disk(tmp_path / "selected")
    datasets.DatasetDict({"train": dataset, "test": dataset.select([1])}).save_to_disk(tmp_path / "splits")
    for name, texts in (("one", TEXTS), ("selected", [TEXTS[i] for i in (5, 3, 4)]), ("splits/test", [TEXTS[1]])):
        assert [document.text for document in documents(find([tmp_path / name]))] == [text for text in texts if text]
    with pytest.raises(
        DataError, match=r"splits: a saved dataset of several splits: name the one to read: .*/train or "
    ):
        find([tmp_path / "splits"])


def test_saved_datasets_that_cannot_be_read(tmp_path: Path) -> None:
    saved = write_arrow(tmp_path, ["a"] * 1101)
    (saved / "data-00001-of-00002.arrow").unlink()
    with pytest.raises(DataError, match=r"data-00001-of-00002\.arrow: missing: .*state\.json names it$"):
        find([tmp_path])
    (saved / "state.json").write_text("{}")
    with pytest.raises(DataError, match=r"state\.json: damaged, or not of a saved dataset: no '_data_files'$"):
        find([saved])
    (tmp_path / "dataset_dict.json").write_text('{"splits": ["train", "test"]}')
    with pytest.raises(DataError, match=r"name the one to read: .*/train or .*/test$"):
        find([tmp_path])


def first_error(path: Path, field: str = "text") -> str:
    with pytest.raises(DataError) as error:
        list(documents(find([path]), text_field=field))
    message = str(error.value)
    assert message.startswith(str(path)) and "\n" not in message
    return message.removeprefix(str(path))


def test_columns_and_rows_that_are_no_text(tmp_path: Path) -> None:
    path = write_parquet(tmp_path, ["a", *TEXTS])
    assert first_error(path, "body") == ": no column 'body' (columns: 'id', 'text'): choose one with --text-field"
    assert first_error(path, "id") == ": column 'id' must be of strings, not int64"
    path = write_parquet(tmp_path, [*(["a"] * 1500), None, "b"])
    assert first_error(path) == ": row 1500: column 'text' has no value (null): fill it or leave the row out"
    column = pa.array([b"a", b"\xff"], pa.binary()).view(pa.string())
    pq.write_table(pa.table({"text": column}), path)
    assert first_error(path) == ": row 1: not UTF-8 text (invalid start byte): convert or leave out"


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("state.json", {"_data_files": None}),
        ("state.json", {"_data_files": ["x"]}),
        ("state.json", {"_data_files": [{"filename": 5}]}),
        ("state.json", []),
        ("dataset_dict.json", {"splits": None}),
        ("dataset_dict.json", {"splits": {"train": 1}}),
    ],
    ids=str,
)
def test_saved_datasets_that_say_something_else(file: str, content: object, tmp_path: Path) -> None:
    saved = write_arrow(tmp_path, ["a"])
    (saved / file).write_text(json.dumps(content))
    with pytest.raises(DataError, match=r"\.json: damaged, or not of a saved dataset: ") as error:
        find([saved])
    assert str(error.value).startswith(f"{saved / file}: ")


def test_a_column_is_found_by_its_whole_name(tmp_path: Path) -> None:
    path, struct = tmp_path / "x.parquet", pa.array([{"raw": "wrong"}] * 2)
    for columns in ({"text.raw": ["a", "b"], "text": ["c", "d"]}, {"text": struct, "text.raw": ["a", "b"]}):
        pq.write_table(pa.table(columns), path)
        assert [document.text for document in documents(find([path]), text_field="text.raw")] == ["a", "b"]
    pq.write_table(pa.table({"text.raw": ["a", "b"], "text": ["c", "d"]}), path)
    assert [document.text for document in documents(find([path]))] == ["c", "d"]
    pq.write_table(pa.table([pa.array(["a"]), pa.array(["b"])], names=["text", "text"]), path)
    assert first_error(path) == ": 2 columns are called 'text': rename all but one"


@pytest.mark.parametrize("name", ["parquet", "saved"])
@pytest.mark.parametrize("keep", [0.6, 0.02, 0])
def test_damaged_files(name: str, keep: float, tmp_path: Path) -> None:
    given = WRITERS[name](tmp_path, TEXTS)
    path = given if given.is_file() else given / "data-00000-of-00002.arrow"
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * keep)])
    assert first_error(path).startswith(": damaged, or no ")


def test_arrow_cut_between_two_batches(tmp_path: Path) -> None:
    path = write_arrow(tmp_path, TEXTS) / "data-00001-of-00002.arrow"
    files = find([path])
    border = sorted({document.consumed for document in documents(files)})[1]
    path.write_bytes(path.read_bytes()[:border])
    assert first_error(path) == ": damaged, or no Arrow stream file: it has no end"


def test_damaged_pages(tmp_path: Path) -> None:
    path = write_parquet(tmp_path, TEXTS)
    content = bytearray(path.read_bytes())
    content[len(content) // 3 : len(content) // 3 + 2000] = b"\xff" * 2000
    path.write_bytes(content)
    first_error(path)
