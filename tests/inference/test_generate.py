"""Text as it comes is the text of all tokens; tokens are what the whole sequence says; what each draw depends on."""

import random
from pathlib import Path

import pytest
import torch

from configs.errors import CheckpointError, ConfigError
from configs.schema import Config
from data.huggingface import HuggingFaceTokenizer
from data.piece_training import train_pieces
from data.tokenizer import ByteTokenizer, PieceTokenizer, Tokenizer
from formats.tokenizer import write_fast_tokenizer
from inference.generate import REPLACEMENT, TextStream, generate, tokens_to_make
from inference.sampling import Sampler
from model.decoder import Decoder
from tests.model.test_cache import decoder

TEXT = "naïve 日本語 \U0001f468‍\U0001f469‍\U0001f467 ▁ \t e\u0301 \ufffd end\n" * 2
CORPUS = [Path(__file__).read_text()]
PROMPT = [5, 9, 2]


@pytest.fixture(scope="module", params=["byte", "bpe", "unigram", "exported byte", "exported bpe"])
def tokenizer(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    folder, kind = tmp_path_factory.mktemp("tokenizer"), request.param.split()[-1]
    found: Tokenizer = ByteTokenizer()
    if kind != "byte":
        (folder / "t.model").write_bytes(train_pieces(CORPUS, kind=kind, vocab_size=360, seed=0))
        found = PieceTokenizer(folder / "t.model")
    if request.param.startswith("exported"):
        write_fast_tokenizer(found, folder / "fast", 64)
        found = HuggingFaceTokenizer(folder / "fast")
    return found


def pieces(tokenizer: Tokenizer, prompt: list[int], ids: list[int]) -> list[str]:
    stream = TextStream(tokenizer, prompt)
    return [*(stream.push(token) for token in ids), stream.finish()]


def test_no_piece_ends_within_a_character(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode(TEXT.replace(REPLACEMENT, "")).tolist()
    shown = pieces(tokenizer, [], ids)
    assert "".join(shown) == tokenizer.decode(ids) == TEXT.replace(REPLACEMENT, "")
    assert not any(REPLACEMENT in piece for piece in shown)
    assert shown[-1] == "" and sum(map(bool, shown)) > 10, "text must come early, not all at the end"


def test_joined_pieces_are_the_text_whatever_the_tokens(tokenizer: Tokenizer) -> None:
    """Bytes that are no UTF-8, ends of documents, real replacement characters, prompts that end within a character."""
    if isinstance(tokenizer, HuggingFaceTokenizer) and tokenizer.vocab_size > 257:
        pytest.skip("byte fallback: see TextStream")
    rng = random.Random(0)
    for _ in range(300):
        ids = rng.choices(range(tokenizer.vocab_size), k=12) if rng.random() < 0.7 else tokenizer.encode(TEXT).tolist()
        cut = rng.randrange(len(ids))
        prompt, rest = ids[:cut], ids[cut:]
        assert "".join(pieces(tokenizer, prompt, rest)) == tokenizer.decode(ids)[len(tokenizer.decode(prompt)) :]


class Script(Sampler):
    """Gives tokens in an order of its own, one list for each step."""

    def __init__(self, *steps: list[int]) -> None:
        super().__init__()
        object.__setattr__(self, "steps", iter(steps))

    def __call__(self, logits_BV: torch.Tensor, generators: object) -> torch.Tensor:
        return torch.tensor(next(self.steps))  # type: ignore[attr-defined]


class Letters:
    """Token 1 is A, 2 is B, ...; 0 ends a document."""

    vocab_size, eod, hash = 61, 0, "letters"

    def decode(self, ids: list[int]) -> str:
        return "".join(chr(64 + token) for token in ids if token)


def write(model: Decoder, sampler: Sampler, samples: int = 1, max_tokens: int = 8, seed: int = 0):
    shown: list[tuple[int, str]] = []
    made = generate(
        model,
        Letters(),  # type: ignore[arg-type]
        PROMPT,
        sampler,
        samples=samples,
        max_tokens=max_tokens,
        seed=seed,
        show=lambda index, piece: shown.append((index, piece)),
    )
    for index, continuation in enumerate(made):
        assert "".join(piece for i, piece in shown if i == index) == continuation.text
    return made


def test_each_stops_at_its_end_of_document() -> None:
    model = decoder()
    made = write(model, Script([3, 4], [0, 5], [6, 6], [1, 0], [7, 7]), samples=2)
    assert [(c.tokens, c.text, c.ended) for c in made] == [
        ([3], "C", "end_of_document"),
        ([4, 5, 6], "DEF", "end_of_document"),
    ]
    (made,) = write(model, Script([3], [4]), max_tokens=2)
    assert (made.tokens, made.text, made.ended) == ([3, 4], "CD", "max_tokens")


@pytest.mark.parametrize("model", [{}, {"positions": "learned", "kv_heads": 2}], ids=str)
def test_greedy_is_the_argmax_of_the_whole_sequence(model: dict) -> None:
    network = decoder(**model)
    (made,) = write(network, Sampler(greedy=True), max_tokens=20)
    ids = list(PROMPT)
    for _ in made.tokens:
        ids.append(int(network(torch.tensor([ids]))[0, -1].argmax()))
    assert made.tokens == ids[len(PROMPT) :] and len(made.tokens) > 5


def test_a_continuation_depends_on_seed_and_index_alone() -> None:
    model = decoder()
    three = [c.tokens for c in write(model, Sampler(), samples=3)]
    assert write(model, Sampler(), samples=1)[0].tokens == three[0]
    assert len({tuple(tokens) for tokens in three}) == 3
    assert [c.tokens for c in write(model, Sampler(), samples=3)] == three
    assert write(model, Sampler(), seed=1)[0].tokens != three[0]


def config(positions: str) -> Config:
    fields = {"data": {"sources": [{"path": "x"}]}, "model": {"positions": positions}}
    return Config.model_validate(fields | {"training": {"sequence_length": 64}})


def test_learned_positions_end_and_rotary_ones_do_not() -> None:
    assert tokens_to_make(config("learned"), 10, None) == 55
    assert tokens_to_make(config("learned"), 10, 55) == 55
    assert tokens_to_make(config("rope"), 10, None) == 100
    assert tokens_to_make(config("rope"), 1000, 7) == 7
    with pytest.raises(ConfigError, match=r"--max-tokens = 56: at most 55 after 10 tokens of prompt: the model has"):
        tokens_to_make(config("learned"), 10, 56)
    with pytest.raises(ConfigError, match=r"--prompt: has 65 tokens: at most the 64 positions that the model has"):
        tokens_to_make(config("learned"), 65, None)


def test_the_last_token_may_take_the_last_position() -> None:
    """What `tokens_to_make` allows, the tables have room for."""
    (made,) = write(decoder(positions="learned"), Script(*[[1]] * 22), max_tokens=22)  # 24 positions, 3 of the prompt
    assert len(made.tokens) == 22


@pytest.mark.parametrize("sampler", [Sampler(), Sampler(greedy=True)], ids=["drawn", "greedy"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_logits_that_are_not_finite(sampler: Sampler, value: float) -> None:
    model = decoder()
    model.get_parameter("head.weight")[7] = value
    with pytest.raises(CheckpointError, match=r"^the model's logits after 0 tokens are not finite"):
        write(model, sampler)
