"""Tokenising the standard library: `prepare` beside SentencePiece's own encoder in a loop."""

import os
import tempfile
import time
from pathlib import Path
from typing import Any

import sentencepiece

from data.corpus import documents, find
from data.prepare import prepare


def train_tokenizer(folder: Path, megabytes: float) -> Path:
    """A SentencePiece model of 4,096 pieces, trained on the first bytes of the standard library."""
    prepare(
        ["stdlib"], folder, tokenizer="bpe", vocab_size=4096, max_bytes=int(megabytes * 1e6), workers=1, progress=False
    )
    return folder / "tokenizer.model"


def encoder_loop(model: Path, megabytes: float) -> dict[str, Any]:
    """`SentencePieceProcessor.encode` over the documents, already in memory, in this process; ids are thrown away."""
    texts = [document.text for document in documents(find(["stdlib"]), max_bytes=int(megabytes * 1e6))]
    size = sum(len(text.encode()) for text in texts)
    processor = sentencepiece.SentencePieceProcessor(model_file=str(model))
    processor.encode(texts[0])
    started, busy = time.perf_counter(), _cpu()
    for text in texts:
        processor.encode(text)
    return _row("sp.encode in a loop", 1, size, time.perf_counter() - started, _cpu() - busy)


def preparing(model: Path, megabytes: float, workers: int) -> dict[str, Any]:
    """All of `prepare`: reading, splitting, tokenising, writing, hashing, checking what came out."""
    with tempfile.TemporaryDirectory() as folder:
        started, busy = time.perf_counter(), _cpu()
        made = prepare(
            ["stdlib"],
            Path(folder) / "out",
            tokenizer=model,
            max_bytes=int(megabytes * 1e6),
            workers=workers,
            progress=False,
        )
        seconds, cpu = time.perf_counter() - started, _cpu() - busy
    return _row("prepare", workers, sum(source.bytes for source in made.manifest.sources), seconds, cpu)


def _row(what: str, workers: int, size: int, seconds: float, cpu: float) -> dict[str, Any]:
    megabytes = size / 1e6
    return {
        "what": what,
        "workers": workers,
        "megabytes": megabytes,
        "seconds": seconds,
        "mb_per_s": megabytes / seconds,
        "cpu_s_per_mb": cpu / megabytes,
    }


def _cpu() -> float:
    """CPU seconds of this process and of its children that have ended."""
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system
