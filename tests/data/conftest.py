"""A small corpus and a dataset prepared from it, made once per worker process."""

import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from data.prepare import prepare

WORDS = ["def", "return", "self", "import", "class", "yield", "été", "漢字", "🙂", "\t", "\n", "", " ", "x", "="]


def write_corpus(path: Path, *, documents: int = 60, seed: int = 0) -> Path:
    generator = random.Random(seed)
    texts = (" ".join(generator.choices(WORDS, k=generator.randrange(5, 200))) for _ in range(documents))
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts), encoding="utf-8")
    return path


@pytest.fixture(scope="session")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_corpus(tmp_path_factory.mktemp("corpus") / "corpus.jsonl")


@pytest.fixture(scope="session")
def prepared(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("prepared") / "bytes"
    prepare([corpus], folder, workers=1, progress=False)
    return folder


@pytest.fixture
def dataset(prepared: Path, tmp_path: Path) -> Path:
    """A copy of the dataset, to be damaged."""
    return Path(shutil.copytree(prepared, tmp_path / "copy"))


@pytest.fixture(scope="session")
def make_dataset(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Prepare a dataset of its own: `make_dataset(documents=..., seed=..., tokenizer=...)`."""

    def make(*, documents: int = 60, seed: int = 0, **settings: object) -> Path:
        folder = tmp_path_factory.mktemp("made")
        write_corpus(folder / "corpus.jsonl", documents=documents, seed=seed)
        prepare([folder / "corpus.jsonl"], folder / "out", workers=1, progress=False, **settings)
        return folder / "out"

    return make
