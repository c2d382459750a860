"""Train a SentencePiece model that loses nothing: identity normalisation, byte fallback, whitespace kept."""

import io
import random
from collections.abc import Iterable, Iterator
from typing import Literal, get_args

from configs.errors import DataError

TrainedKind = Literal["bpe", "unigram"]
TRAINED: tuple[TrainedKind, ...] = get_args(TrainedKind)
LINE_LENGTH = 1000  # characters; the trainer skips sentences of more than 4192 bytes
MAX_LINES = 1_000_000


def train_pieces(texts: Iterable[str], *, kind: TrainedKind, vocab_size: int, seed: int) -> bytes:
    """A serialised SentencePiece model of `vocab_size` pieces, trained on at most a million lines of `texts`.

    Newline and tab are pieces of their own; runs of spaces may become pieces. The same texts and seed give the same
    bytes.

    Raises: DataError if the texts hold too little for so many pieces, or `vocab_size` is too small for the bytes.
    """
    import sentencepiece

    lines = _sample(_lines(texts), MAX_LINES, seed)
    if not lines:
        raise DataError(f"no text to train a {kind} tokenizer on: give more documents")
    model = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(lines),
            model_writer=model,
            model_type=kind,
            vocab_size=vocab_size,
            byte_fallback=True,
            normalization_rule_name="identity",
            remove_extra_whitespaces=False,
            add_dummy_prefix=False,
            allow_whitespace_only_pieces=True,
            user_defined_symbols=["\n", "\t"],
            unk_id=0,
            eos_id=1,
            eos_piece="<eod>",
            bos_id=-1,
            pad_id=-1,
            num_threads=4,  # part of the result: partial sums are added up per thread
            minloglevel=2,
        )
    except RuntimeError as error:
        reason = " ".join(str(error).split()).rpartition("] ")[2]  # drops the place in the C++ source
        raise DataError(f"vocab_size = {vocab_size}: SentencePiece cannot train a {kind} model: {reason}") from error
    return model.getvalue()


def _lines(texts: Iterable[str]) -> Iterator[str]:
    for text in texts:
        for line in text.split("\n"):
            for start in range(0, len(line), LINE_LENGTH):
                yield line[start : start + LINE_LENGTH]


def _sample(lines: Iterable[str], count: int, seed: int) -> list[str]:
    """A uniform sample of at most `count` lines in one pass (Vitter 1985, algorithm R)."""
    generator = random.Random(seed)
    kept: list[str] = []
    for index, line in enumerate(lines):
        if index < count:
            kept.append(line)
        elif (place := generator.randrange(index + 1)) < count:
            kept[place] = line
    return kept
