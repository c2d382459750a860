"""What a loss is said to be: bytes of text exactly, the standard error, the figures that follow."""

import io
import math
from pathlib import Path

import numpy as np
import pytest

from data.huggingface import HuggingFaceTokenizer
from data.piece_training import train_pieces
from data.tokenizer import ByteTokenizer, PieceTokenizer, Tokenizer
from formats.tokenizer import write_fast_tokenizer
from inference.evaluate import summarise
from inference.tokens import TextBytes

TEXTS = [
    "naïve 日本語 \U0001f468‍\U0001f469‍\U0001f467\n\tfor x in range(10):\n        ▁ e\u0301",
    "x",
    "a  b \x00 end",
    "▁",
]


CORPUS = Path(__file__).read_text()


def stream(tokenizer: Tokenizer, texts: list[str]) -> np.ndarray:
    """Documents as a dataset holds them, after the end of another."""
    return np.array([tokenizer.eod, *(token for text in texts for token in (*tokenizer.encode(text), tokenizer.eod))])


def foreign(path: Path) -> PieceTokenizer:
    """A SentencePiece model with the library's own defaults: a space before each text, NFKC, no bytes."""
    import sentencepiece

    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(["the end of a text and x b"] * 20), model_writer=model, vocab_size=17, minloglevel=2
    )
    path.write_bytes(model.getvalue())
    return PieceTokenizer(path)


def ours(kind: str, folder: Path) -> ByteTokenizer | PieceTokenizer:
    if kind == "byte":
        return ByteTokenizer()
    (folder / f"{kind}.model").write_bytes(train_pieces([CORPUS], kind=kind, vocab_size=500, seed=0))  # type: ignore[arg-type]
    return PieceTokenizer(folder / f"{kind}.model")


def byte_level(folder: Path) -> HuggingFaceTokenizer:
    """As GPT-2's."""
    from tokenizers import ByteLevelBPETokenizer

    trained = ByteLevelBPETokenizer()
    trained.train_from_iterator([CORPUS] * 3, vocab_size=400, special_tokens=["<eod>"])
    trained.save(str(folder / "tokenizer.json"))
    return HuggingFaceTokenizer(folder, "<eod>")


@pytest.mark.parametrize("kind", ["byte", "bpe", "unigram", "byte level", "exported bpe", "exported byte"])
def test_every_byte_of_text_counts_once(kind: str, tmp_path: Path) -> None:
    tokenizer: Tokenizer
    if kind == "byte level":
        tokenizer = byte_level(tmp_path)
    else:
        tokenizer = ours(kind.split()[-1], tmp_path)
        if kind.startswith("exported"):
            write_fast_tokenizer(tokenizer, tmp_path / "fast", 64)
            tokenizer = HuggingFaceTokenizer(tmp_path / "fast")
    tokens_T = stream(tokenizer, TEXTS)
    expected = len("".join(TEXTS).encode())
    text_bytes = TextBytes.of(tokenizer)
    assert text_bytes is not None and text_bytes.of_targets(tokens_T[None]) == expected
    # Cut anywhere, characters included: the parts add up.
    for cut in range(1, len(tokens_T) - 1):
        parts = tokens_T[None, : cut + 1], tokens_T[None, cut:]
        assert sum(text_bytes.of_targets(part) for part in parts) == expected


def test_tokens_that_are_no_certain_bytes_have_no_count(tmp_path: Path) -> None:
    """WordPiece drops the spaces and puts others in their place."""
    from tokenizers import BertWordPieceTokenizer

    trained = BertWordPieceTokenizer()
    trained.train_from_iterator([CORPUS], vocab_size=200, special_tokens=["[UNK]", "[SEP]"])
    trained.save(str(tmp_path / "tokenizer.json"))
    assert TextBytes.of(HuggingFaceTokenizer(tmp_path, "[SEP]")) is None
    found = summarise(np.array([1.0]), 10, None)
    assert found.bits_per_byte is None and found.bytes is None


def test_the_space_that_some_models_put_before_a_text_is_none_of_it(tmp_path: Path) -> None:
    tokenizer = foreign(tmp_path / "foreign.model")
    texts = ["the end of a text", "x", "and b"]
    tokens_T = stream(tokenizer, texts)
    assert tokenizer.decode(tokenizer.encode(texts[0])) == texts[0]
    assert TextBytes.of(tokenizer).of_targets(tokens_T[None]) == len("".join(texts).encode())


def test_the_figures() -> None:
    found = summarise(np.array([1.0, 2.0, 4.0]), 10, 15)
    assert found.loss == pytest.approx(7 / 3) and found.perplexity == pytest.approx(math.exp(7 / 3))
    assert found.standard_error == pytest.approx(np.std([1, 2, 4], ddof=1) / 3**0.5)
    assert found.bits_per_byte == pytest.approx((1 + 2 + 4) * 10 / math.log(2) / 15)
    assert (found.samples, found.tokens, found.bytes) == (3, 30, 15)
    assert summarise(np.array([1.0]), 10, 15).standard_error is None


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("loss", [math.nan, math.inf])
def test_losses_that_are_not_finite(loss: float) -> None:
    found = summarise(np.array([1.0, loss]), 10, 15)
    assert found.standard_error is not None and math.isnan(found.standard_error)
    np.testing.assert_equal((found.loss, found.perplexity, found.bits_per_byte), (loss, loss, loss))
