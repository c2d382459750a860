import gzip
import json
import os
import sysconfig
from pathlib import Path

import pytest
import zstandard

from configs.errors import DataError
from data.corpus import documents, find

TEXTS = ["first", "zweites ünïcode 🙂", "line\r\nbreaks\tand  spaces ", "\ufeffmark"]
JSONL = "".join(json.dumps({"text": text, "id": i}) + "\n" for i, text in enumerate(TEXTS)).encode()


def texts_of(*inputs: str | Path, **settings: object) -> list[str]:
    return [document.text for document in documents(find(inputs), **settings)]


def refused(*inputs: str | Path, **settings: object) -> str:
    with pytest.raises(DataError) as caught:
        texts_of(*inputs, **settings)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def zstd(content: bytes) -> bytes:
    return zstandard.ZstdCompressor().compress(content)


ENCODERS = {".jsonl": bytes, ".jsonl.gz": gzip.compress, ".jsonl.zst": zstd}


@pytest.mark.parametrize("suffix", ENCODERS)
def test_a_line_is_a_document(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"data{suffix}"
    path.write_bytes(ENCODERS[suffix](JSONL + b"\n" + b'{"text": ""}\n' + b'{"text": "no newline at the end"}'))
    assert texts_of(path) == [*TEXTS, "no newline at the end"]


@pytest.mark.parametrize("suffix", [".jsonl.gz", ".jsonl.zst"])
def test_concatenated_archives_are_one_corpus(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"data{suffix}"
    path.write_bytes(ENCODERS[suffix](JSONL) + ENCODERS[suffix](JSONL))
    assert texts_of(path) == TEXTS * 2


def test_long_lines_cross_the_blocks_of_an_archive(tmp_path: Path) -> None:
    path = tmp_path / "long.jsonl.zst"
    long = [str(i) * 3_000_000 for i in range(3)]
    path.write_bytes(zstd("".join(json.dumps({"text": text}) + "\n" for text in long).encode()))
    assert texts_of(path) == long


def test_folder_is_read_sorted_and_without_hidden_files(tmp_path: Path) -> None:
    for name in ["b.txt", "a/z.txt", "a/.hidden.txt", ".git/config", "c.md"]:
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(name.encode())
    (tmp_path / "empty.txt").touch()
    assert texts_of(tmp_path) == ["a/z.txt", "b.txt", "c.md"]
    assert texts_of(tmp_path / "**" / "*.txt") == ["a/z.txt", "b.txt"]
    assert texts_of(tmp_path / "c.md", tmp_path / "*.txt") == ["c.md", "b.txt"]


def test_text_is_kept_to_the_byte(tmp_path: Path) -> None:
    text = "\ufeff\r\n\r  a\tb \x00 end without newline"
    (tmp_path / "a.txt").write_bytes(text.encode())
    assert texts_of(tmp_path / "a.txt") == [text]


def test_max_bytes_takes_whole_documents_from_the_start(tmp_path: Path) -> None:
    for name, size in [("a", 10), ("b", 10), ("c", 10), ("d", 1)]:
        (tmp_path / f"{name}.txt").write_text(name * size)
    assert texts_of(tmp_path, max_bytes=29) == ["a" * 10, "b" * 10]
    assert len(texts_of(tmp_path, max_bytes=30)) == 3
    assert texts_of(tmp_path, max_bytes=9) == []


def test_text_field_is_a_choice(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"body": "yes", "text": "no"}\n')
    assert texts_of(tmp_path / "a.jsonl", text_field="body") == ["yes"]


def test_standard_library(tmp_path: Path) -> None:
    files = find(["stdlib"])
    names = [file.name for file in files]
    assert names == sorted(names, key=lambda name: ("/" in name, name))  # modules, then packages
    assert {"argparse.py", "asyncio/events.py"} <= set(names)
    assert all(name.endswith(".py") and "site-packages" not in name and "/test/" not in name for name in names)
    root = Path(sysconfig.get_path("stdlib"))
    taken = texts_of("stdlib", max_bytes=1_000_000)
    filled = [file.name for file in files if file.size > 0]
    assert taken == [(root / name).read_bytes().decode() for name in filled[: len(taken)]]
    assert 700_000 < sum(len(text.encode()) for text in taken) <= 1_000_000


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        (b'{"text": "x"', "not JSON"),
        (b'{"text": 3}', "must be a string, not int"),
        (b'{"body": "x"}', "no field 'text' (fields: 'body')"),
        (b"[1]", "a JSON object is needed, not list"),
        (b'{"text": "\xff"}', "not UTF-8"),
        (b'{"text": "\\ud800"}', "not Unicode text"),
        (b"[" * 100_000, "cannot be read"),
    ],
)
@pytest.mark.parametrize("suffix", ENCODERS)
def test_bad_line_is_named(tmp_path: Path, suffix: str, line: bytes, complaint: str) -> None:
    path = tmp_path / f"bad{suffix}"
    path.write_bytes(ENCODERS[suffix](b'{"text": "good"}\n\n' + line + b"\n"))
    message = refused(path)
    assert message.startswith(f"{path}:3: ")
    assert complaint in message


def test_text_that_is_not_utf8_is_named_by_line(tmp_path: Path) -> None:
    path = tmp_path / "latin1.txt"
    path.write_bytes(b"good\ngood\nna\xefve\n")
    assert refused(tmp_path).startswith(f"{path}:3: not UTF-8")


@pytest.mark.parametrize("suffix", [".jsonl.gz", ".jsonl.zst"])
@pytest.mark.parametrize("damage", ["truncated", "overwritten", "foreign"])
def test_damaged_archive_is_named(tmp_path: Path, suffix: str, damage: str) -> None:
    path = tmp_path / f"data{suffix}"
    content = ENCODERS[suffix](JSONL * 100)
    middle = len(content) // 2
    path.write_bytes(
        {
            "truncated": content[:-3],
            "overwritten": content[:middle] + bytes(20) + content[middle + 20 :],
            "foreign": JSONL,
        }[damage]
    )
    assert refused(path).startswith(f"{path}:")


def test_inputs_that_name_nothing(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    assert "no such file or folder" in refused(tmp_path / "missing.txt")
    assert "no such file or folder" in refused(tmp_path / "*.txt")
    assert "holds no files" in refused(tmp_path / "empty")
    with pytest.raises(DataError, match=r"^input: must not be empty"):
        find([""])


def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    assert refused(tmp_path / "pipe").startswith(f"{tmp_path / 'pipe'}: a pipe or a device")


def test_a_file_named_twice(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("a")
    assert refused(tmp_path, tmp_path / "*.txt").startswith(f"{tmp_path / 'a.txt'}: named twice")
