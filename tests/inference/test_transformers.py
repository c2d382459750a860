"""A run and its export to transformers write the same text."""

import os
from pathlib import Path

import pytest
import torch

from configs.schema import Config
from exchange.export import Wanted, export
from exchange.origin import tokenizer_of
from exchange.plain import open_run
from inference.generate import generate
from inference.load import load_decoder, place
from inference.sampling import Sampler

TOKENS = 40


def ours(cfg: Config, prompt: list[int]) -> list[int]:
    weights = open_run(cfg.run_dir)
    tokenizer = tokenizer_of(weights, None)
    decoder = load_decoder(weights, tokenizer.vocab_size, place(weights.config, "cpu", "fp32"))
    greedy, silent = Sampler(greedy=True), lambda index, piece: None
    (made,) = generate(decoder, tokenizer, prompt, greedy, samples=1, max_tokens=TOKENS, seed=0, show=silent)
    return made.tokens


def theirs(folder: Path, prompt: list[int]) -> list[int]:
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, local_files_only=True)
    made = model.generate(torch.tensor([prompt]), max_new_tokens=TOKENS, do_sample=False)[0, len(prompt) :].tolist()
    return [token for token in made if token != model.config.eos_token_id]


@pytest.mark.parametrize("text", ["def main", "import "])
def test_greedy_tokens_are_those_of_transformers(llama_run: Config, tmp_path: Path, text: str) -> None:
    os.environ["HF_HUB_OFFLINE"] = "1"
    export(Wanted(llama_run.run_dir, tmp_path / "hf", dtype="fp32"))
    prompt = list(text.encode())
    made = ours(llama_run, prompt)
    assert made == theirs(tmp_path / "hf", prompt)
    assert len(made) == TOKENS and len(set(made)) > 5, made
