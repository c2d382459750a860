import errno
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import data.dataset
from configs.errors import DataError
from data.corpus import documents, find
from data.dataset import PROBED_DOCUMENTS, Split, verify
from data.manifest import fingerprint_of, read_manifest
from data.recipe import SplitRule
from data.tokenizer import ByteTokenizer

Damage = Callable[[Path], None]


def test_windows_are_the_text_across_document_borders(prepared: Path, corpus: Path) -> None:
    rule, tokenizer = SplitRule(0.1, 0), ByteTokenizer()
    texts = [d.text for d in documents(find([corpus])) if rule.split_of(d.text) == "train"]
    stream = np.concatenate([np.append(tokenizer.encode(text), tokenizer.eod) for text in texts])
    split = Split(prepared, "train")
    assert split.tokens == len(stream)
    assert split.documents == len(texts)
    for start, count in [(0, 10), (len(stream) - 7, 7), (0, len(stream)), (123, 500)]:
        window = split.read(start, count)
        assert window.dtype == np.int64
        np.testing.assert_array_equal(window, stream[start : start + count])


def test_reading_outside_the_split(prepared: Path) -> None:
    split = Split(prepared, "validation")
    for start, count in [(-1, 5), (split.tokens - 4, 5), (0, split.tokens + 1)]:
        with pytest.raises(IndexError):
            split.read(start, count)


def test_megatron_opens_it(prepared: Path) -> None:
    from megatron.core.datasets.indexed_dataset import IndexedDataset

    manifest = read_manifest(prepared)
    for name, record in (("train", manifest.train), ("validation", manifest.validation)):
        indexed = IndexedDataset(str(prepared / name))
        assert len(indexed) == record.documents == len(indexed.document_indices) - 1
        assert int(indexed.sequence_lengths.sum()) == record.tokens
        assert all(indexed[i][-1] == manifest.tokenizer.eod for i in range(len(indexed)))


def flip(path: Path, position: int) -> None:
    content = bytearray(path.read_bytes())
    content[position] ^= 1
    path.write_bytes(content)


def edit_manifest(folder: Path, *, forge: bool = False, **changes: object) -> None:
    path = folder / "manifest.json"
    fields = json.loads(path.read_text()) | changes
    if forge:
        fields["fingerprint"] = fingerprint_of(fields)
    path.write_text(json.dumps(fields))


def swap(folder: Path, suffix: str) -> None:
    train, validation = folder / f"train.{suffix}", folder / f"validation.{suffix}"
    train.rename(folder / "x")
    validation.rename(train)
    (folder / "x").rename(validation)


DAMAGES: dict[str, tuple[str, Damage]] = {
    "no manifest": ("manifest.json", lambda f: (f / "manifest.json").unlink()),
    "half a manifest": ("manifest.json", lambda f: (f / "manifest.json").write_text('{"format_version": 1')),
    "binary manifest": ("manifest.json", lambda f: (f / "manifest.json").write_bytes(b"\xff\xfe\x00")),
    "manifest of another version": ("manifest.json", lambda f: edit_manifest(f, format_version=2)),
    "edited manifest": ("manifest.json", lambda f: edit_manifest(f, seed=77)),
    "manifest of a list": ("manifest.json", lambda f: (f / "manifest.json").write_text("[]")),
    "no bin": ("train.bin", lambda f: (f / "train.bin").unlink()),
    "no idx": ("train.idx", lambda f: (f / "train.idx").unlink()),
    "truncated bin": ("train.bin", lambda f: (f / "train.bin").write_bytes((f / "train.bin").read_bytes()[:-2])),
    "empty bin": ("train.bin", lambda f: (f / "train.bin").write_bytes(b"")),
    "empty idx": ("train.idx", lambda f: (f / "train.idx").write_bytes(b"")),
    "flipped byte in bin": ("train.bin", lambda f: flip(f / "train.bin", 1000)),
    "flipped byte in idx": ("train.idx", lambda f: flip(f / "train.idx", 100)),
    "swapped bins": ("train.bin", lambda f: swap(f, "bin")),
    "swapped idx": ("train.idx", lambda f: swap(f, "idx")),
    "bin is a folder": ("train.bin", lambda f: ((f / "train.bin").unlink(), (f / "train.bin").mkdir())[0]),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_damage_is_one_line_naming_the_file(dataset: Path, name: str) -> None:
    file, damage = DAMAGES[name]
    Split(dataset, "train")
    damage(dataset)
    for use in (lambda: Split(dataset, "train"), lambda: verify(dataset)):
        with pytest.raises(DataError) as caught:
            use()
        assert str(caught.value).startswith(f"{dataset / file}: ")
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("file", ["train.bin", "train.idx"])
def test_files_of_another_dataset(dataset: Path, make_dataset: Callable[..., Path], file: str) -> None:
    shutil.copy(make_dataset(seed=1) / file, dataset / file)
    with pytest.raises(DataError, match=f"{file}: damaged"):
        Split(dataset, "train")


@pytest.mark.parametrize(
    ("file", "position"),
    [("train.idx", 0), ("train.idx", 17), ("train.idx", 18), ("train.idx", 34), ("train.idx", -8), ("train.bin", -2)],
    ids=["magic", "dtype", "count", "first length", "last document", "last end"],
)
def test_structure_is_checked_where_hashing_takes_too_long(
    dataset: Path, monkeypatch: pytest.MonkeyPatch, file: str, position: int
) -> None:
    monkeypatch.setattr(data.dataset, "HASHED_SIZE", 0)
    Split(dataset, "train")
    flip(dataset / file, position)
    with pytest.raises(DataError, match=file):
        Split(dataset, "train")


def test_large_datasets_open_without_reading_them_and_verify_reads_all(
    dataset: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(data.dataset, "HASHED_SIZE", 0)
    flip(dataset / "train.bin", 1000)
    Split(dataset, "train")
    with pytest.raises(DataError, match=r"train\.bin: damaged"):
        verify(dataset)


def test_reading_needs_no_package_that_is_slow_to_import(prepared: Path) -> None:
    code = """
import sys
from pathlib import Path
from data.dataset import Split
print(Split(Path(sys.argv[1]), "train").read(0, 3).tolist(), {"torch", "megatron"} & set(sys.modules))
"""
    done = subprocess.run([sys.executable, "-c", code, prepared], capture_output=True, text=True, check=True)
    assert done.stdout == f"{Split(prepared, 'train').read(0, 3).tolist()} set()\n"


def test_a_file_cut_short_after_it_was_opened(dataset: Path) -> None:
    split = Split(dataset, "train")
    (dataset / "train.bin").write_bytes((dataset / "train.bin").read_bytes()[:-2])
    with pytest.raises(DataError, match=r"train\.bin: damaged: it ends before byte"):
        split.read(split.tokens - 4, 4)


def test_a_disk_that_fails_is_one_line(dataset: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    split = Split(dataset, "train")

    def fail(*_: int) -> bytes:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(os, "pread", fail)
    with pytest.raises(DataError, match=r"train\.bin: cannot be read: Input/output error"):
        split.read(0, 4)


def test_a_search_for_a_document_reads_little_of_the_index(dataset: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[int] = []
    pread = os.pread
    monkeypatch.setattr(os, "pread", lambda f, size, offset: read.append(size) or pread(f, size, offset))
    split = Split(dataset, "train")
    assert sum(read) < PROBED_DOCUMENTS * 40
    read.clear()
    _, starts = split.documents_in(split.tokens // 2, 10)
    assert starts[0] <= split.tokens // 2
    assert sum(read) <= 8 * (2 * split.documents.bit_length() + len(starts))


def test_counts_that_do_not_fit_the_files(dataset: Path) -> None:
    train = json.loads((dataset / "manifest.json").read_text())["train"]
    edit_manifest(dataset, forge=True, train=train | {"tokens": train["tokens"] - 1})
    with pytest.raises(DataError, match=r"train\.idx: damaged: sizes do not fit"):
        Split(dataset, "train")


def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(
        DataError, match=r"manifest\.json: missing, no such dataset: make it with `steadytrain prepare`"
    ):
        Split(tmp_path / "nothing", "train")


def test_verify_accepts_what_prepare_wrote(prepared: Path) -> None:
    assert verify(prepared) == read_manifest(prepared)
