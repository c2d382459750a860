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
SCORE_STEP = 1 / 16  # nats


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
            required_chars="\u2581",  # a space without a piece would be read back as the bytes of its mark
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
    return _round_scores(model.getvalue()) if kind == "unigram" else model.getvalue()


def _round_scores(model: bytes) -> bytes:
    """A unigram model with scores that are multiples of `SCORE_STEP`.

    SentencePiece adds up scores in float32 from the beginning of a text. Their rounding would decide between spellings
    of the same score (eight spaces as five and three, or as three and five), by what stands far before them. Multiples
    of 1/16 add up exactly to 2^20 nats: more than 100,000 tokens.
    """
    from sentencepiece.sentencepiece_model_pb2 import ModelProto

    proto = ModelProto.FromString(model)
    for piece in proto.pieces:
        piece.score = round(piece.score / SCORE_STEP) * SCORE_STEP
    return proto.SerializeToString(deterministic=True)


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
