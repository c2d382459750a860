"""A SentencePiece model as a fast tokenizer.

Which pieces there are, with which ids, is the model's own. What differs between the two libraries:

- SentencePiece joins the two neighbours whose union is the piece of the best score, the leftmost if there are several;
  a fast tokenizer goes by a list of pairs. Every pair that gives a piece is listed, best piece first.
- A space is written as U+2581 inside SentencePiece. Our own models spell a real U+2581 in bytes; in their translation
  pieces hold real spaces, so that it stays apart from them without any rule.
- A unigram model of the fast kind finds every entry of the vocabulary in a text, `<0x41>` and `</s>` too. Those get a
  score with which they lose against any other spelling.
- SentencePiece adds up scores in float32, fast tokenizers exactly. Where two spellings of a text have nearly the same
  score, a unigram model from elsewhere may fall on the other side; those of `data.piece_training` have round scores.
"""

import re
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

from configs.errors import DataError
from data.tokenizer import SPACE_MARK, PieceTokenizer

if TYPE_CHECKING:
    from sentencepiece.sentencepiece_model_pb2 import ModelProto
    from tokenizers import Tokenizer as FastTokenizer
    from tokenizers import decoders, models, normalizers

# Types of pieces in sentencepiece_model.proto.
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6
UNIGRAM, BPE = 1, 2
UNKNOWN_PENALTY = 10.0  # what both libraries take from the worst score for a character without a piece


@dataclass(frozen=True)
class _Piece:
    """A piece as the fast tokenizer writes it."""

    text: str
    score: float
    type: int


def fast_pieces(tokenizer: PieceTokenizer) -> "FastTokenizer":
    """The fast tokenizer of a SentencePiece model.

    Raises: DataError if the model is of a kind that fast tokenizers do not have.
    """
    from sentencepiece.sentencepiece_model_pb2 import ModelProto
    from tokenizers import AddedToken
    from tokenizers import Tokenizer as FastTokenizer

    proto = ModelProto.FromString(tokenizer.path.read_bytes())
    _refuse(proto, tokenizer)
    real_spaces = tokenizer.spells_space_mark
    pieces = [
        _Piece(piece.piece.replace(SPACE_MARK, " ") if real_spaces else piece.piece, piece.score, piece.type)
        for piece in proto.pieces
    ]
    if len({piece.text for piece in pieces}) < len(pieces):
        raise DataError(f"{tokenizer.path}: two pieces differ in the space mark only: no fast tokenizer can have both")
    if proto.trainer_spec.model_type == BPE:
        fast = FastTokenizer(_bpe(pieces, proto, tokenizer))
    else:
        fast = FastTokenizer(_unigram(pieces, proto, tokenizer))
        _split_unspellable(fast, pieces)
    if (normalizer := _normalizer(proto, real_spaces=real_spaces)) is not None:
        fast.normalizer = normalizer
    fast.decoder = _decoder(proto, real_spaces=real_spaces)
    fast.add_tokens([AddedToken(piece.text, normalized=False) for piece in pieces if piece.type == USER_DEFINED])
    fast.add_special_tokens([AddedToken(piece.text, normalized=False) for piece in pieces if piece.type == CONTROL])
    return fast


def _refuse(proto: "ModelProto", tokenizer: PieceTokenizer) -> None:
    trainer, normalizer = proto.trainer_spec, proto.normalizer_spec
    reason = None
    if trainer.model_type not in (BPE, UNIGRAM):
        reason = "is neither a bpe nor a unigram model"
    elif trainer.treat_whitespace_as_suffix:
        reason = "puts the space after a word"
    elif not normalizer.escape_whitespaces:
        reason = "does not mark spaces"
    elif trainer.model_type == BPE and any(piece.type == UNUSED for piece in proto.pieces):
        reason = "has unused pieces"
    if reason:
        raise DataError(f"{tokenizer.path}: this SentencePiece model {reason}: no fast tokenizer does that")


def _bpe(pieces: list[_Piece], proto: "ModelProto", tokenizer: PieceTokenizer) -> "models.BPE":
    from tokenizers import models

    normal = {piece.text for piece in pieces if piece.type == NORMAL}
    ranked = sorted((piece for piece in pieces if piece.type == NORMAL), key=lambda piece: -piece.score)
    for better, worse in pairwise(ranked):
        if better.score == worse.score and len(better.text) > 1 < len(worse.text):
            raise DataError(
                f"{tokenizer.path}: the pieces {better.text!r} and {worse.text!r} have the same score: SentencePiece "
                "then joins whatever comes first in a text, which no fast tokenizer does"
            )
    for piece in ranked:
        if missing := sorted(set(piece.text) - normal):
            raise DataError(
                f"{tokenizer.path}: the piece {piece.text!r} holds {missing[0]!r}, which is no piece: a fast tokenizer "
                "cannot begin with it"
            )
    return models.BPE(
        {piece.text: number for number, piece in enumerate(pieces)},
        [pair for piece in ranked for pair in _pairs(piece.text, normal)],
        unk_token=_unknown(pieces),
        fuse_unk=True,
        byte_fallback=proto.trainer_spec.byte_fallback,
    )


def _pairs(text: str, normal: set[str]) -> list[tuple[str, str]]:
    """Every two pieces that make up `text`, in an order that takes the left one of two that overlap.

    In x y z with xy = yz = `text`, SentencePiece joins x and y. The pairs (x, y) and (y, z) are split at |x| and at
    len(text) - |x|; xy = yz means that `text` has the period |x|. If it has both periods it is a word repeated; a run
    is joined from the left, so that the longer part lies left.
    """
    pairs = []
    for short in range(1, len(text) // 2 + 1):
        long = len(text) - short
        has_short_period, has_long_period = text[short:] == text[:long], text[long:] == text[:short]
        order = (short, long) if has_short_period and not has_long_period else (long, short)
        pairs += [(text[:split], text[split:]) for split in dict.fromkeys(order)]
    return [(left, right) for left, right in pairs if left in normal and right in normal]


def _unigram(pieces: list[_Piece], proto: "ModelProto", tokenizer: PieceTokenizer) -> "models.Unigram":
    """Unigram with the pieces' scores, and one for the entries that are no text with which no text becomes them.

    The penalty of unknown characters follows from the worst score of all, so it changes with that one: no matter if
    each unknown character is unknown in every spelling.
    """
    from tokenizers import models

    scored = [piece for piece in pieces if piece.type == NORMAL]
    if inside := _unknown_inside(pieces):
        raise DataError(
            f"{tokenizer.path}: a piece holds {inside!r}, which is no piece: a fast tokenizer weighs it differently"
        )
    longest = max((len(piece.text) for piece in pieces if piece.type not in (NORMAL, USER_DEFINED)), default=1)
    worst = min((piece.score for piece in scored), default=0.0)
    never = float(int(min(worst, 0.0) * longest) - 1000)
    vocabulary = [
        (piece.text, piece.score if piece.type == NORMAL else 0.0 if piece.type == USER_DEFINED else never)
        for piece in pieces
    ]
    unknown = next((number for number, piece in enumerate(pieces) if piece.type == UNKNOWN), None)
    return models.Unigram(vocabulary, unk_id=unknown, byte_fallback=proto.trainer_spec.byte_fallback)


def _unknown_inside(pieces: list[_Piece]) -> str | None:
    """A character of a piece that is no piece itself."""
    normal = {piece.text for piece in pieces if piece.type == NORMAL}
    return min({character for text in normal for character in text} - normal, default=None)


def _split_unspellable(fast: "FastTokenizer", pieces: list[_Piece]) -> None:
    """Keep `<0x41>` from being found as a whole where one of its characters has no piece of its own.

    Its low score does not help there: a character without a piece has a lower one. Such a character is in no piece, so
    a text may be cut at it.
    """
    from tokenizers import Regex, pre_tokenizers

    normal = {piece.text for piece in pieces if piece.type == NORMAL}
    spelt = {
        character for piece in pieces if piece.type not in (NORMAL, USER_DEFINED) for character in piece.text
    } - normal
    if spelt:
        letters = "".join(map(re.escape, sorted(spelt)))
        fast.pre_tokenizer = pre_tokenizers.Split(Regex(f"[{letters}]"), behavior="isolated")


def _unknown(pieces: list[_Piece]) -> str | None:
    return next((piece.text for piece in pieces if piece.type == UNKNOWN), None)


def _normalizer(proto: "ModelProto", *, real_spaces: bool) -> "normalizers.Normalizer | None":
    return None


def _decoder(proto: "ModelProto", *, real_spaces: bool) -> "decoders.Decoder":
    from tokenizers import decoders

    return decoders.Sequence([decoders.ByteFallback(), decoders.Fuse()])
