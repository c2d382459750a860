"""The lm-evaluation-harness on an exported run, offline: its log-likelihoods are those of `steadytrain evaluate`.

Shapes: B windows of a document, T tokens.
"""

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from configs.schema import Config
from exchange.export import Wanted, export
from exchange.origin import tokenizer_of
from exchange.plain import open_run
from inference.evaluate import sample_losses, summarise
from inference.load import load_decoder, place
from inference.tokens import TextBytes
from tests.inference.conftest import llama_run

__all__ = ["llama_run"]

ROOT = Path(__file__).parents[2]
LENGTH = 64
"""The run's sequences: the harness cuts a document into as many tokens, the first after an end of document."""


def test_documents_are_the_same_every_time_and_answers_are_right(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "examples.lm_eval", "--files", "6", "--out"]
    for folder in ("a", "b"):
        subprocess.run([*command, str(tmp_path / folder)], cwd=ROOT, check=True, capture_output=True)
    for name in ("text.jsonl", "next_line.jsonl"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    texts, questions = (read(tmp_path / "a" / name) for name in ("text.jsonl", "next_line.jsonl"))
    assert len(texts) == len(questions) == 6
    for question in questions:
        assert len(question["choices"]) == 4 and question["context"].count("\n") == 2
    assert len({question["answer"] for question in questions}) > 1


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_harness_measures_what_evaluate_measures(llama_run: Config, tmp_path: Path) -> None:
    export(Wanted(llama_run.run_dir, tmp_path / "model", dtype="fp32"))
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    offline = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_CACHE": str(tmp_path / "cache"), "PYTHONPATH": str(ROOT)}
    python = str(Path(sys.executable).parent)
    for command in (
        f"{python}/python -m examples.lm_eval",
        f"{python}/lm_eval run --model hf --model_args pretrained=model,dtype=float32 --device cpu --batch_size 8 "
        "--tasks stdlib_text,stdlib_next_line --include_path examples/lm_eval --output_path out --log_samples",
    ):
        done = subprocess.run(command.split(), cwd=tmp_path, env=os.environ | offline, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
    assert "stdlib_next_line" in done.stdout

    weights = open_run(llama_run.run_dir)
    tokenizer = tokenizer_of(weights, None)
    decoder = load_decoder(weights, tokenizer.vocab_size, place(weights.config, "cpu", "fp32"))
    losses, theirs, size, text_bytes = [], 0.0, 0, TextBytes.of(tokenizer)
    assert text_bytes is not None
    for sample in read(next(tmp_path.glob("out/*/samples_stdlib_text_*.jsonl"))):
        tokens_T = np.array([tokenizer.eod, *tokenizer.encode(sample["doc"]["text"])])
        if (len(tokens_T) - 1) % LENGTH:
            continue  # the harness gives the tokens of a last, shorter window more context
        windows_BT = np.stack([tokens_T[first : first + LENGTH + 1] for first in range(0, len(tokens_T) - 1, LENGTH)])
        own = sample_losses(decoder, torch.from_numpy(windows_BT)).tolist()
        log_likelihood, nbytes = sample["bits_per_byte"]
        assert -sum(own) * LENGTH == pytest.approx(log_likelihood, rel=1e-5)
        assert nbytes == text_bytes.of_targets(windows_BT)
        losses, theirs, size = losses + own, theirs + log_likelihood, size + nbytes
    assert len(losses) >= 10 * 1536 // LENGTH
    assert summarise(np.array(losses), LENGTH, size).bits_per_byte == pytest.approx(
        -theirs / math.log(2) / size, rel=1e-5
    )


def read(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
