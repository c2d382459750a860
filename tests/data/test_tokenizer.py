from collections.abc import Callable
from pathlib import Path

import pytest
import sentencepiece
from hypothesis import example, given, settings
from hypothesis import strategies as st

from configs.errors import DataError
from data.piece_training import train_pieces
from data.tokenizer import ByteTokenizer, PieceTokenizer, Tokenizer, load

TEXTS = [f"def f{i}(x):\n    return  x + {i}  # été {i * i}\n\tpass\n" for i in range(300)]
AWKWARD = [
    "",
    " ",
    "   leading and trailing   ",
    "tabs\t\tand\nnewlines\r\n\r\n",
    "emoji 🙂👩‍👩‍👧 漢字 e\u0301 \u00a0\u3000\u200b\ufeff",
    "space mark \u2581x\u2581\u2581 \u2581",
    "<unk><eod></s><0x41>\x00\x7f",
    "\u2047\u2585\ufffd",
]


@pytest.fixture(scope="module", params=["byte", "bpe", "unigram"])
def tokenizer(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    if request.param == "byte":
        return ByteTokenizer()
    path = tmp_path_factory.mktemp("model") / "tokenizer.model"
    path.write_bytes(train_pieces(TEXTS, kind=request.param, vocab_size=400, seed=0))
    return PieceTokenizer(path)


@given(text=st.text(st.one_of(st.characters(exclude_categories=["Cs"]), st.sampled_from(" \t\n\u2581<>x0"))))
@settings(max_examples=300, deadline=None)
@example(text=AWKWARD[5])
def test_any_text_comes_back(tokenizer: Tokenizer, text: str) -> None:
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    assert tokenizer.eod not in ids
    assert all(0 <= token < tokenizer.vocab_size for token in ids)


@pytest.mark.parametrize("text", [*AWKWARD, *TEXTS[:5]])
def test_awkward_text_comes_back(tokenizer: Tokenizer, text: str) -> None:
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_decoding_leaves_out_ends_and_repairs_bytes(tokenizer: Tokenizer) -> None:
    ids = [tokenizer.eod, *tokenizer.encode("é"), tokenizer.eod]
    assert tokenizer.decode(ids) == "é"
    assert "\ufffd" in tokenizer.decode([*tokenizer.encode("漢")][:-1])


def test_bytes() -> None:
    tokenizer = ByteTokenizer()
    assert tokenizer.encode("aé").tolist() == [97, 195, 169]
    assert (tokenizer.vocab_size, tokenizer.eod) == (257, 256)


@pytest.mark.parametrize("kind", ["bpe", "unigram"])
def test_training_is_reproducible_and_compresses(tmp_path: Path, kind: str) -> None:
    models = [train_pieces(TEXTS, kind=kind, vocab_size=400, seed=0) for _ in range(2)]
    assert models[0] == models[1]
    (tmp_path / "a.model").write_bytes(models[0])
    tokenizer = PieceTokenizer(tmp_path / "a.model")
    assert tokenizer.vocab_size == 400
    assert len(tokenizer.encode(TEXTS[7])) < len(TEXTS[7])


def test_vocabulary_that_the_text_cannot_fill() -> None:
    with pytest.raises(DataError, match=r"^vocab_size = 9000: SentencePiece cannot train a bpe model: .*<= \d+"):
        train_pieces(["just a few words"], kind="bpe", vocab_size=9000, seed=0)
    with pytest.raises(DataError, match="no text"):
        train_pieces([], kind="bpe", vocab_size=9000, seed=0)


def test_models_that_cannot_be_used(tmp_path: Path) -> None:
    path = tmp_path / "x.model"
    with pytest.raises(DataError, match=r"x\.model: cannot be read"):
        PieceTokenizer(path)
    path.write_bytes(b"not a model")
    with pytest.raises(DataError, match=r"x\.model: not a SentencePiece model"):
        PieceTokenizer(path)
    with open(path, "wb") as stream:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(TEXTS), model_writer=stream, vocab_size=120, eos_id=-1, minloglevel=2
        )
    with pytest.raises(DataError, match="no end-of-sentence piece"):
        PieceTokenizer(path)


def test_a_model_from_elsewhere_keeps_its_own_spacing(tmp_path: Path) -> None:
    path = tmp_path / "x.model"
    with open(path, "wb") as stream:  # the trainer's defaults put a space before a text and merge runs of spaces
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(TEXTS), model_writer=stream, vocab_size=400, byte_fallback=True, minloglevel=2
        )
    tokenizer = PieceTokenizer(path)
    assert tokenizer.decode(tokenizer.encode("a  b")) == "a b"
    plain = sentencepiece.SentencePieceProcessor(model_file=str(path))
    assert tokenizer.encode("a\u2581b").tolist() == plain.encode("a\u2581b")


def test_loading_from_a_dataset(prepared: Path, make_dataset: Callable[..., Path]) -> None:
    assert isinstance(load(prepared), ByteTokenizer)
    folder = make_dataset(tokenizer="bpe", vocab_size=320)
    assert load(folder).decode(load(folder).encode(TEXTS[0])) == TEXTS[0]
    model = folder / "tokenizer.model"
    model.write_bytes(train_pieces(TEXTS, kind="bpe", vocab_size=320, seed=0))
    with pytest.raises(DataError, match=r"tokenizer\.model: not the tokenizer"):
        load(folder)
    model.unlink()
    with pytest.raises(DataError, match=r"tokenizer\.model: cannot be read"):
        load(folder)
