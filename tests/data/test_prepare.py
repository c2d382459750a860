import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
from filelock import FileLock

import data.prepare
from configs.errors import ConfigError, DataError
from data.dataset import Split, verify
from data.manifest import read_manifest
from data.prepare import prepare
from data.tokenizer import ByteTokenizer
from tests.data.conftest import write_corpus

FILES = ["train.bin", "train.idx", "validation.bin", "validation.idx", "manifest.json"]


@pytest.fixture(scope="module")
def large_corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Several chunks of work."""
    return write_corpus(tmp_path_factory.mktemp("large") / "large.jsonl", documents=5000)


@pytest.mark.parametrize("tokenizer", ["byte", "bpe"])
def test_any_number_of_workers_writes_the_same_bytes(large_corpus: Path, tmp_path: Path, tokenizer: str) -> None:
    for workers in (1, 2, 3):
        out = tmp_path / str(workers)
        prepare([large_corpus], out, tokenizer=tokenizer, vocab_size=320, workers=workers, progress=False)
    files = FILES if tokenizer == "byte" else [*FILES, "tokenizer.model"]
    for workers in (1, 2, 3):
        assert sorted(os.listdir(tmp_path / str(workers))) == sorted(files)
        for file in files:
            assert (tmp_path / str(workers) / file).read_bytes() == (tmp_path / "1" / file).read_bytes()


def test_what_it_returns(corpus: Path, tmp_path: Path) -> None:
    result = prepare([corpus], tmp_path / "out", workers=1, progress=False)
    manifest = read_manifest(tmp_path / "out")
    assert result.manifest == manifest
    assert (result.folder, result.reused, result.vocab_size) == (tmp_path / "out", False, 257)
    assert result.train_documents + result.validation_documents == manifest.sources[0].documents == 60
    assert result.train_tokens + result.validation_tokens == manifest.sources[0].bytes + 60
    verify(tmp_path / "out")


def test_split_by_content_keeps_equal_documents_together(tmp_path: Path) -> None:
    for i in range(40):
        for copy in "ab":
            (tmp_path / f"{copy}{i}.txt").write_text(f"document {i}")
    prepare([tmp_path], tmp_path / "out", validation_fraction=0.4, workers=1, progress=False)

    def texts(name: str) -> set[str]:
        split = Split(tmp_path / "out", name)
        return set(ByteTokenizer().decode(np_replace(split.read(0, split.tokens))).split("\n")) - {""}

    def np_replace(ids):  # an end of document becomes a newline
        return [10 if token == 256 else token for token in ids]

    assert not texts("train") & texts("validation")
    assert len(texts("train") | texts("validation")) == 40


def test_share_and_seed_of_the_split(large_corpus: Path, tmp_path: Path) -> None:
    results = [
        prepare([large_corpus], tmp_path / str(seed), validation_fraction=0.25, seed=seed, workers=1, progress=False)
        for seed in (0, 1)
    ]
    for result in results:
        assert abs(result.validation_documents / 5000 - 0.25) < 0.03
    assert results[0].manifest.validation != results[1].manifest.validation


def test_the_same_recipe_is_reused(corpus: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    first = prepare([corpus], out, workers=1, progress=False)
    before = (out / "train.bin").stat()
    again = prepare([corpus], out, workers=2, progress=False)
    assert (again.reused, again.manifest) == (True, first.manifest)
    assert (out / "train.bin").stat() == before


def test_a_damaged_dataset_is_not_reused(corpus: Path, tmp_path: Path) -> None:
    prepare([corpus], tmp_path / "out", workers=1, progress=False)
    (tmp_path / "out" / "train.bin").write_bytes(b"")
    with pytest.raises(DataError, match=r"train\.bin: damaged"):
        prepare([corpus], tmp_path / "out", workers=1, progress=False)
    prepare([corpus], tmp_path / "out", workers=1, force=True, progress=False)
    verify(tmp_path / "out")


def test_another_recipe_is_refused_or_forced(tmp_path: Path) -> None:
    corpus, out = write_corpus(tmp_path / "a.jsonl"), tmp_path / "out"
    prepare([corpus], out, workers=1, progress=False)
    before = read_manifest(out)
    for settings in ({"seed": 1}, {"max_bytes": 5000}, {"validation_fraction": 0.2}, {"tokenizer": "bpe"}):
        with pytest.raises(DataError, match="exists and was made from other inputs or settings"):
            prepare([corpus], out, workers=1, progress=False, **settings)
    write_corpus(corpus, seed=5)
    with pytest.raises(DataError, match="exists and was made from other inputs or settings"):
        prepare([corpus], out, workers=1, progress=False)
    assert read_manifest(out) == before
    forced = prepare([corpus], out, workers=1, force=True, progress=False)
    assert not forced.reused
    assert read_manifest(out) == forced.manifest != before
    assert sorted(os.listdir(tmp_path)) == [".out.lock", "a.jsonl", "out"]


def test_what_is_not_a_dataset_is_never_replaced(corpus: Path, tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("precious")
    for out in (tmp_path, tmp_path / "thesis.txt"):
        for force in (False, True):
            with pytest.raises(DataError, match="is not a prepared dataset"):
                prepare([corpus], out, workers=1, force=force, progress=False)
    assert (tmp_path / "thesis.txt").read_text() == "precious"


def test_a_model_from_elsewhere(corpus: Path, make_dataset: Callable[..., Path], tmp_path: Path) -> None:
    model = make_dataset(tokenizer="unigram", vocab_size=300) / "tokenizer.model"
    result = prepare([corpus], tmp_path / "out", tokenizer=model, workers=1, progress=False)
    assert (result.vocab_size, result.manifest.tokenizer.kind) == (300, "sentencepiece")
    assert (tmp_path / "out" / "tokenizer.model").read_bytes() == model.read_bytes()


@pytest.mark.parametrize(
    ("settings", "complaint"),
    [
        ({"validation_fraction": 0.0}, "validation_fraction = 0.0: must lie between 0 and 1"),
        ({"validation_fraction": 1.0}, "validation_fraction = 1.0"),
        ({"workers": 0}, "workers = 0: must be at least 1"),
        ({"max_bytes": 0}, "max_bytes = 0"),
        ({"tokenizer": "bpe", "vocab_size": 20}, "vocab_size = 20: must be at least 300"),
        ({"tokenizer": "wordpiece"}, "tokenizer = wordpiece: must be byte, bpe, unigram, or the path"),
        ({"inputs": []}, "inputs: must name"),
    ],
)
def test_settings_out_of_range(corpus: Path, tmp_path: Path, settings: dict, complaint: str) -> None:
    inputs = settings.pop("inputs", [corpus])
    with pytest.raises(ConfigError, match=f"^{complaint}"):
        prepare(inputs, tmp_path / "out", progress=False, **{"workers": 1} | settings)
    assert not (tmp_path / "out").exists()


def test_splits_need_documents(corpus: Path, tmp_path: Path) -> None:
    (tmp_path / "one.txt").write_text("a single document")
    with pytest.raises(DataError, match=r"one\.txt: 1 documents leave the validation split empty"):
        prepare([tmp_path / "one.txt"], tmp_path / "out", workers=1, progress=False)
    with pytest.raises(DataError, match="not one document whose text fits in max_bytes = 3"):
        prepare([tmp_path / "one.txt"], tmp_path / "out", max_bytes=3, workers=1, progress=False)
    assert sorted(os.listdir(tmp_path)) == [".out.lock", "one.txt"]


@pytest.mark.parametrize("workers", [1, 2])
def test_bad_input_leaves_nothing_behind(large_corpus: Path, tmp_path: Path, workers: int) -> None:
    bad = tmp_path / "bad.jsonl"
    bad.write_bytes(large_corpus.read_bytes() + b"{broken\n")
    with pytest.raises(DataError, match=r"bad\.jsonl:5001: not JSON"):
        prepare([bad], tmp_path / "out", workers=workers, progress=False)
    assert sorted(os.listdir(tmp_path)) == [".out.lock", "bad.jsonl"]


def test_a_trainer_error_crosses_processes(corpus: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="vocab_size = 50000: SentencePiece cannot train a bpe model"):
        prepare([corpus], tmp_path / "out", tokenizer="bpe", vocab_size=50000, workers=1, progress=False)


def test_a_place_that_cannot_be_written(corpus: Path) -> None:
    with pytest.raises(DataError, match=r"^/proc/.*cannot be written"):
        prepare([corpus], "/proc/nowhere/out", workers=1, progress=False)


def test_two_at_once(corpus: Path, tmp_path: Path) -> None:
    with (
        FileLock(tmp_path / ".out.lock"),
        pytest.raises(DataError, match="another process is preparing this folder"),
    ):
        prepare([corpus], tmp_path / "out", workers=1, progress=False)


def test_a_failure_while_replacing_keeps_the_old_dataset(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = prepare([corpus], tmp_path / "out", workers=1, progress=False).manifest

    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(data.prepare, "build", fail)
    with pytest.raises(DataError, match="No space left on device"):
        prepare([corpus], tmp_path / "out", workers=1, seed=9, force=True, progress=False)
    assert verify(tmp_path / "out") == before


ENDLESS = """
import data.recipe
from data.prepare import prepare
from launcher.train import sigterm_exits

read = data.recipe.documents

def endless(*args, **settings):
    while True:
        yield from read(*args, **settings)
        print("a round is read", flush=True)

data.recipe.documents = endless
with sigterm_exits():  # as the command does
    prepare([{corpus!r}], {out!r}, workers=2)
"""


@pytest.fixture
def endless(large_corpus: Path, tmp_path: Path) -> Iterator[subprocess.Popen]:
    """A preparation with two workers that reads its corpus over and over, in the middle of its work."""
    code = ENDLESS.format(corpus=str(large_corpus), out=str(tmp_path / "out"))
    command = [sys.executable, "-c", code]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        assert process.stdout
        for _ in range(4):  # more than may be under way: some of it is written
            assert process.stdout.readline() == "a round is read\n"
        yield process
        process.kill()


def test_killed_in_the_middle(endless: subprocess.Popen, large_corpus: Path, tmp_path: Path) -> None:
    children = psutil.Process(endless.pid).children(recursive=True)
    assert len(children) >= 2
    assert (tmp_path / ".out.partial" / "train.bin").stat().st_size > 0
    endless.kill()
    endless.wait()
    assert psutil.wait_procs(children, timeout=30)[1] == []
    assert not (tmp_path / "out").exists()
    with pytest.raises(DataError, match=r"\.out\.partial/manifest\.json: missing, not a finished dataset"):
        Split(tmp_path / ".out.partial", "train")
    prepare([large_corpus], tmp_path / "out", workers=1, progress=False)
    assert sorted(os.listdir(tmp_path)) == [".out.lock", "out"]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=lambda number: number.name)
def test_ended_in_the_middle(endless: subprocess.Popen, tmp_path: Path, number: signal.Signals) -> None:
    children = psutil.Process(endless.pid).children(recursive=True)
    endless.send_signal(number)
    assert endless.wait(timeout=30) != 0
    assert psutil.wait_procs(children, timeout=30)[1] == []
    assert sorted(os.listdir(tmp_path)) == [".out.lock"]
