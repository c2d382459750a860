import random
import sysconfig
from itertools import islice
from pathlib import Path

import pytest
import sentencepiece
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer as FastTokenizer

import data.piece_training
from configs.errors import DataError
from data.piece_training import TrainedKind, train_pieces
from data.tokenizer import ByteTokenizer, PieceTokenizer, Tokenizer
from formats.tokenizer import compare, write_fast_tokenizer

LINES = 10_000


def generated(generator: random.Random) -> str:
    """A line of any characters, of neighbours in one script, of marks and joiners, of tabs and spaces."""
    start = generator.choice([0x20, 0xA0, 0x300, 0x590, 0x900, 0x1100, 0x1E00, 0x2000, 0x3040, 0x4E00, 0xAC00, 0x1F300])
    near = [chr(start + generator.randrange(0x100)) for _ in range(generator.randrange(20))]
    anywhere = [chr(generator.choice([generator.randrange(0xD800), generator.randrange(0xE000, 0x110000)]))]
    known = generator.choices(["\t", "  ", " ", "🙂", "👩‍👩‍👧", "e\u0301", "\u2581", "<eod>", "\x00", "=", "def"], k=10)
    line = near + anywhere + known
    generator.shuffle(line)
    return "".join(line)


@pytest.fixture(scope="session")
def lines() -> list[str]:
    """Ten thousand lines: the standard library's own source, and generated Unicode."""
    files = sorted(Path(sysconfig.get_path("stdlib")).glob("*.py"))
    source = (line for file in files for line in file.read_text(encoding="utf-8").split("\n"))
    generator = random.Random(0)
    return [*islice(source, LINES - 3000), *(generated(generator) for _ in range(3000))]


def opened(folder: Path) -> FastTokenizer:
    """As transformers opens it."""
    fast = FastTokenizer.from_file(str(folder / "tokenizer.json"))
    fast.encode_special_tokens = True
    return fast


@pytest.fixture(scope="session", params=["byte", "bpe", "unigram"])
def ours(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, lines: list[str]) -> Tokenizer:
    if request.param == "byte":
        return ByteTokenizer()
    path = tmp_path_factory.mktemp("model") / "tokenizer.model"
    path.write_bytes(train_pieces(lines[:4000], kind=request.param, vocab_size=2000, seed=0))
    return PieceTokenizer(path)


@pytest.fixture(scope="session")
def folder(ours: Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("fast") / "tokenizer"
    write_fast_tokenizer(ours, folder, context=64)
    return folder


@pytest.fixture(scope="session")
def fast(folder: Path) -> FastTokenizer:
    return opened(folder)


def test_ten_thousand_lines(ours: Tokenizer, fast: FastTokenizer, lines: list[str]) -> None:
    assert len(lines) == LINES
    for line in lines:
        ids = ours.encode(line).tolist()
        assert fast.encode(line).ids == ids
        assert fast.decode(ids) == line
    document = "\n".join(lines)
    assert fast.encode(document).ids == ours.encode(document).tolist()


FOREIGN = {
    "nmt_nfkc": {"model_type": "bpe"},
    "llama": {
        "model_type": "bpe",
        "byte_fallback": True,
        "normalization_rule_name": "identity",
        "remove_extra_whitespaces": False,
    },
    "no-prefix": {
        "model_type": "bpe",
        "byte_fallback": True,
        "normalization_rule_name": "identity",
        "add_dummy_prefix": False,
    },
}


def train_elsewhere(path: Path, lines: list[str], **settings: object) -> PieceTokenizer:
    """With the trainer's defaults: nmt_nfkc, a space before the text, spaces at the ends and in runs removed."""
    with open(path, "wb") as stream:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter([*lines, "漢字かな 한국어 é"]),
            model_writer=stream,
            vocab_size=500,
            minloglevel=2,
            **settings,
        )
    return PieceTokenizer(path)


@pytest.mark.parametrize("kind", ["nmt_nfkc", "llama", pytest.param("no-prefix", marks=pytest.mark.slow)])
def test_ten_thousand_lines_of_a_model_from_elsewhere(kind: str, lines: list[str], tmp_path: Path) -> None:
    theirs = train_elsewhere(tmp_path / "x.model", lines[:1500], **FOREIGN[kind])
    write_fast_tokenizer(theirs, tmp_path / "fast", context=64)
    fast = opened(tmp_path / "fast")
    plain = sentencepiece.SentencePieceProcessor(model_file=str(tmp_path / "x.model"))
    for line in lines:
        ids = plain.encode(line) if kind != "no-prefix" else theirs.encode(line).tolist()
        assert fast.encode(line).ids == ids
        assert fast.decode(ids) == plain.decode(ids)


def test_unigram_is_refused_if_rounding_decides(
    lines: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(data.piece_training, "_round_scores", lambda model: model)
    path = tmp_path / "x.model"
    path.write_bytes(train_pieces(lines[:4000], kind="unigram", vocab_size=2000, seed=0))
    with pytest.raises(DataError, match=r"x\.model: has no equal among fast tokenizers: token \d+ of '.*\] there$"):
        write_fast_tokenizer(PieceTokenizer(path), tmp_path / "fast", context=64)
    assert not (tmp_path / "fast").exists()


def test_texts_of_the_caller_are_compared(lines: list[str], tmp_path: Path) -> None:
    theirs = train_elsewhere(tmp_path / "x.model", lines[:500], **FOREIGN["nmt_nfkc"])
    with pytest.raises(DataError, match=r"no equal among fast tokenizers: token 0 of '\\u1d52\\u0301 x' is"):
        write_fast_tokenizer(theirs, tmp_path / "fast", context=64, texts=["fine", "\u1d52\u0301 x"])


def test_what_fast_tokenizers_cannot_do(lines: list[str], tmp_path: Path) -> None:
    for kind, reason in (
        ({"model_type": "word"}, "is neither a bpe nor a unigram model"),
        ({"model_type": "bpe", "treat_whitespace_as_suffix": True}, "puts the space after a word"),
    ):
        theirs = train_elsewhere(tmp_path / "x.model", lines[:1500], **kind)
        with pytest.raises(DataError, match=f"this SentencePiece model {reason}: no fast tokenizer does that$"):
            write_fast_tokenizer(theirs, tmp_path / "fast", context=64)


@given(text=st.text(st.one_of(st.characters(exclude_categories=["Cs"]), st.sampled_from(" \t\n\u2581<>0xA=e-"))))
@settings(max_examples=300, deadline=None)
def test_any_text(ours: Tokenizer, fast: FastTokenizer, text: str) -> None:
    compare(ours, fast, "tokenizer", [text])


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["bpe", "unigram"])
@pytest.mark.parametrize("letters", ["ab", "abc ", "a =", "aé漢 ", "abcdefgh  \n\t", "<0x>41AB ", "\u2581 ab"])
def test_few_letters_and_many_ties(kind: TrainedKind, letters: str, tmp_path: Path) -> None:
    """Runs and repeated words, where the order of merges and of equal scores matters most."""
    generator = random.Random(letters)

    def text() -> str:
        return "".join(
            generator.choice(letters) * generator.choice([1, 1, 1, 2, 3, 8]) for _ in range(generator.randrange(1, 60))
        )

    path, trained = tmp_path / "tokenizer.model", 0
    for vocab_size in (280, 300, 330, 400):
        try:
            path.write_bytes(train_pieces([text() for _ in range(200)], kind=kind, vocab_size=vocab_size, seed=0))
        except DataError:  # too few different pieces
            continue
        tokenizer, trained = PieceTokenizer(path), trained + 1
        others = "xyz 0<>\u2581🙂\n\t\x00é_"
        mixed = ["".join(generator.choices(letters + others, k=generator.randrange(80))) for _ in range(300)]
        write_fast_tokenizer(tokenizer, tmp_path / "fast", context=64, texts=[*mixed, *(text() for _ in range(300))])
    assert trained


@pytest.mark.slow
def test_transformers_opens_it(ours: Tokenizer, folder: Path, lines: list[str], tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    opened = AutoTokenizer.from_pretrained(folder)
    assert (opened.is_fast, opened.eos_token_id, opened.bos_token_id) == (True, ours.eod, None)
    assert (opened.model_max_length, len(opened)) == (64, ours.vocab_size)
    opened.save_pretrained(tmp_path)
    for tokenizer in (opened, AutoTokenizer.from_pretrained(tmp_path)):
        for line in [*lines[-500:], "<eod>", " <eod> ", "x\n\n"]:
            ids = ours.encode(line).tolist()
            assert tokenizer(line)["input_ids"] == ids
            assert tokenizer.decode([*ids, ours.eod], skip_special_tokens=True) == line
