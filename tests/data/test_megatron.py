import json
import os
import shutil
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from configs.errors import ConfigError, DataError
from configs.schema import DataSource
from data.dataset import check, verify
from data.indexed import HEADER, SplitWriter
from data.manifest import SPLITS
from data.megatron import link_megatron
from data.place import Prepared
from data.samples import Samples


@pytest.fixture(scope="module")
def ours(make_dataset: Callable[..., Path]) -> Path:
    """Prepared by us; its files serve as somebody else's."""
    return make_dataset(tokenizer="bpe", vocab_size=320)


@pytest.fixture
def theirs(ours: Path, tmp_path: Path) -> Path:
    """The same tokens under other names, and the tokenizer that made them."""
    folder = tmp_path / "theirs"
    folder.mkdir()
    for name, other in (("train", "wiki_text_document"), ("validation", "held.out")):
        for suffix in ("bin", "idx"):
            shutil.copyfile(ours / f"{name}.{suffix}", folder / f"{other}.{suffix}")
    shutil.copyfile(ours / "tokenizer.model", folder / "a.model")
    return folder


def link(theirs: Path, out: Path, **settings: object) -> Prepared:
    given = {"tokenizer": theirs / "a.model"} | settings
    return link_megatron(theirs / "wiki_text_document", theirs / "held.out", out, progress=False, **given)


def test_the_same_tokens_give_the_same_samples(ours: Path, theirs: Path, tmp_path: Path) -> None:
    made = link(theirs, tmp_path / "out")
    for split in SPLITS:
        ours_k, theirs_k = (
            Samples([DataSource(path=folder)], split, 16, seed=3) for folder in (ours, tmp_path / "out")
        )
        for k in range(300):
            np.testing.assert_array_equal(theirs_k[k], ours_k[k])
    manifest = verify(tmp_path / "out")
    assert made.manifest == manifest == check(tmp_path / "out")
    prepared = verify(ours)
    assert (manifest.train, manifest.validation) == (prepared.train, prepared.validation)
    assert manifest.tokenizer.hash == prepared.tokenizer.hash
    assert [source.bytes for source in manifest.sources] == [None, None]


def test_no_token_is_copied(theirs: Path, tmp_path: Path) -> None:
    link(theirs, tmp_path / "out")
    assert os.readlink(tmp_path / "out" / "train.bin") == str(theirs.resolve() / "wiki_text_document.bin")
    moved = (tmp_path / "out").rename(tmp_path / "elsewhere")
    verify(moved)
    assert link(theirs, moved).reused
    (theirs / "held.out.bin").rename(theirs / "gone")
    with pytest.raises(DataError, match=r"validation\.bin: missing"):
        check(moved)
    (theirs / "gone").rename(theirs / "held.out.bin")
    with open(theirs / "held.out.bin", "r+b") as stream:
        stream.write(b"\x05")
    with pytest.raises(DataError, match=r"validation\.bin: damaged, or of another dataset"):
        verify(moved)


def test_replacing_leaves_their_files(theirs: Path, tmp_path: Path) -> None:
    link(theirs, tmp_path / "out")
    before = (theirs / "held.out.bin").read_bytes()
    os.utime(theirs / "held.out.bin", (1, 1))
    with pytest.raises(DataError, match="exists and was made from other inputs or settings"):
        link(theirs, tmp_path / "out")
    link(theirs, tmp_path / "out", force=True)
    assert (theirs / "held.out.bin").read_bytes() == before
    with pytest.raises(DataError, match=r"theirs: holds .*, which is to be linked: choose another folder"):
        link(theirs, theirs, force=True)


def write(prefix: Path, documents: list[list[int]], dtype: str = "uint16") -> None:
    writer = SplitWriter(prefix, dtype)
    for ids in documents:
        writer.add(np.array(ids, dtype=dtype))
    writer.finish()


def patch(path: Path, offset: int, content: bytes) -> None:
    with open(path, "r+b") as stream:
        stream.seek(offset, os.SEEK_SET if offset >= 0 else os.SEEK_END)
        stream.write(content)


WRONG: dict[str, tuple[Callable[[Path], None], str]] = {
    "another vocabulary": (
        lambda prefix: write(prefix, [[5, 6, 1], [400, 1]]),
        r"held\.out\.bin: token 3 is 400: the tokenizer has ids 0 to 319: these tokens are another tokenizer's$",
    ),
    "negative": (lambda prefix: write(prefix, [[5, -6, 1]], "int32"), "tokens of type int32, the training split's are"),
    "no end": (
        lambda prefix: write(prefix, [[5, 1], [5, 6, 7], [8, 1]]),
        r"held\.out\.bin: document 1 ends with token 7, not with 1, the tokenizer's end of a document: ",
    ),
    "type": (
        lambda prefix: patch(prefix.with_name("held.out.idx"), 17, b"\x05"),
        r"held\.out\.idx: tokens of type int64: must be version 1 with tokens of type int32 or uint16$",
    ),
    "version": (lambda prefix: patch(prefix.with_name("held.out.idx"), 9, b"\x02"), "version 2: must be version 1"),
    "magic": (lambda prefix: patch(prefix.with_name("held.out.idx"), 0, b"X"), "not the index of a Megatron dataset"),
    "shorter": (
        lambda prefix: patch(prefix.with_name("held.out.bin"), 1 << 20, b"\x00"),
        r"held\.out\.idx: damaged, or not of held\.out\.bin: its documents do not fill that file",
    ),
    "modes": (
        lambda prefix: patch(prefix.with_name("held.out.idx"), os.stat(f"{prefix}.idx").st_size, b"\x00"),
        "damaged, or of several modes",
    ),
    "sentences": (
        lambda prefix: patch(
            prefix.with_name("held.out.idx"), 18, struct.pack("<Q", HEADER.unpack_from(prefix.with_name(
                "held.out.idx").read_bytes())[3] + 1)
        ),
        r"documents of \d+ sequences: each document must be one sequence: tokenise again",
    ),
    "empty document": (
        lambda prefix: patch(prefix.with_name("held.out.idx"), HEADER.size, b"\x00" * 4),
        "no document, or an empty one",
    ),
    "missing": (lambda prefix: prefix.with_name("held.out.idx").unlink(), r"held\.out\.idx: no such file: a Megatron"),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
def test_what_does_not_fit(name: str, theirs: Path, tmp_path: Path) -> None:
    spoil, complaint = WRONG[name]
    spoil(theirs / "held.out")
    with pytest.raises(DataError, match=complaint) as error:
        link(theirs, tmp_path / "out")
    assert "\n" not in str(error.value)
    assert not (tmp_path / "out").exists()


def test_negative_ids(theirs: Path, tmp_path: Path) -> None:
    write(theirs / "wiki_text_document", [[5, 6, 1]], "int32")
    write(theirs / "held.out", [[5, -6, 1]], "int32")
    with pytest.raises(DataError, match=r"held\.out\.bin: token 1 is -6"):
        link(theirs, tmp_path / "out")


def test_tokenizers_that_cannot_have_made_it(theirs: Path, tmp_path: Path) -> None:
    for tokenizer, complaint in (
        ("bpe", "tokenizer = bpe: tokens that are there need the tokenizer that made them"),
        ("nowhere", "tokenizer = nowhere: must be byte, or the path"),
    ):
        with pytest.raises(ConfigError, match=f"^{complaint}"):
            link(theirs, tmp_path / "out", tokenizer=tokenizer)
    with pytest.raises(ConfigError, match=r"eod = x: only for a tokenizer\.json"):
        link(theirs, tmp_path / "out", eod="x")
    with pytest.raises(DataError, match="both splits are the same files"):
        link_megatron(*[theirs / "held.out"] * 2, tmp_path / "out", tokenizer=theirs / "a.model", progress=False)
    for suffix in (".bin", ".idx"):
        shutil.copyfile(theirs / f"wiki_text_document{suffix}", theirs / f"held.out{suffix}")
    with pytest.raises(
        DataError, match=r"held\.out\.bin: the same tokens as .*document\.bin: name others for validation"
    ):
        link(theirs, tmp_path / "out")


def test_ends_on_the_border_of_blocks(theirs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("data.megatron_files.BLOCK", 3)
    write(theirs / "held.out", [[5, 6, 1], [7, 1], [1], [9, 9, 9, 9, 9, 1]])
    assert link(theirs, tmp_path / "out").validation_documents == 4
    write(theirs / "held.out", [[5, 6, 1], [7, 1], [2], [9, 1]])
    with pytest.raises(DataError, match="document 2 ends with token 2"):
        link(theirs, tmp_path / "other")
    write(theirs / "held.out", [[5, 6, 1], [7, 1], [1], [9, 9, 9, 9]])
    with pytest.raises(DataError, match="document 3 ends with token 9"):
        link(theirs, tmp_path / "other")


def test_the_command(theirs: Path, tmp_path: Path) -> None:
    from typer.testing import CliRunner

    from launcher.cli import app

    given = [
        "prepare",
        "--megatron-train",
        str(theirs / "wiki_text_document"),
        "--out",
        str(tmp_path / "out"),
        "--json",
    ]
    given += ["--tokenizer", str(theirs / "a.model")]
    result = CliRunner().invoke(app, given)
    assert "--megatron-train and --megatron-validation: must be given together" in f"{result.output}{result.exception}"
    result = CliRunner().invoke(app, [*given, "--megatron-validation", str(theirs / "held.out")])
    assert json.loads(result.stdout)["vocab_size"] == 320
    result = CliRunner().invoke(app, [*given, "--megatron-validation", str(theirs / "held.out"), "stdlib"])
    assert "takes tokens that are there and no INPUT" in f"{result.output}{result.exception}"


def test_odd_ends_are_used_and_said(theirs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    prefix = theirs / "held.out"
    given = {"tokenizer": theirs / "a.model"}
    link_megatron(theirs / "wiki_text_document", prefix, tmp_path / "plain", **given)
    assert "used as it is" not in capsys.readouterr().err
    write(prefix, [[5, 1, 6, 1], [1], [1, 1], [7, 1]])
    link_megatron(theirs / "wiki_text_document", prefix, tmp_path / "odd", **given)
    said = capsys.readouterr().err
    assert (
        f"{prefix}.bin: 2 of its 6 ends of a document (token 1) stand within documents, as if these were 6 and not 4: "
        "used as it is\n" in said
    )
    assert f"{prefix}.bin: 1 of its 4 documents are empty, their end alone: used as it is\n" in said
