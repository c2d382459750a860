"""A SentencePiece model as a fast tokenizer.

Which pieces there are, with which ids, is the model's own. What differs between the two libraries:

- SentencePiece joins the two neighbours whose union is the piece of the best score, the leftmost if there are several;
  a fast tokenizer goes by a list of pairs. Every pair that gives a piece is listed, best piece first.
- A space is written as U+2581 inside SentencePiece. Our own models spell a real U+2581 in bytes; in their translation
  pieces hold real spaces, so that it stays apart from them without any rule.
- A unigram model of the fast kind finds every entry of the vocabulary in a text, `<0x41>` and `</s>` too. Those get a
  score with which they lose against any other spelling.
- SentencePiece adds up scores in float32, fast tokenizers exactly. Between spellings of the same score (a run of 26
  dashes as 16 and 10, or 10 and 16) its rounding decides, and cannot be repeated: unigram models with such pieces are
  refused, but those of `data.piece_training`, whose scores add up exactly.
"""

import re
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

from configs.errors import DataError
from data.tokenizer import SPACE_MARK, PieceTokenizer
from formats.tokenizer_charsmap import SEPARATOR, charsmap_normalizers

if TYPE_CHECKING:
    from sentencepiece.sentencepiece_model_pb2 import ModelProto, NormalizerSpec
    from tokenizers import Tokenizer as FastTokenizer
    from tokenizers import decoders, models, normalizers

# Types of pieces in sentencepiece_model.proto.
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6
UNIGRAM, BPE = 1, 2
MANY = 1 << 20  # spaces


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
        _split_unspellable(fast, pieces, byte_fallback=proto.trainer_spec.byte_fallback)
    fast.normalizer = _normalizer(proto.normalizer_spec, real_spaces=real_spaces)
    fast.decoder = _decoder(proto.normalizer_spec, pieces, proto.trainer_spec.unk_surface)
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
    unknown = next(number for number, piece in enumerate(pieces) if piece.type == UNKNOWN)
    return models.Unigram(vocabulary, unk_id=unknown, byte_fallback=proto.trainer_spec.byte_fallback)


def _unknown_inside(pieces: list[_Piece]) -> str | None:
    """A character of a piece that is no piece itself."""
    normal = {piece.text for piece in pieces if piece.type == NORMAL}
    return min({character for text in normal for character in text} - normal, default=None)


def _split_unspellable(fast: "FastTokenizer", pieces: list[_Piece], *, byte_fallback: bool) -> None:
    """Keep `<0x41>` from being found as a whole where one of its characters has no piece of its own.

    Its low score does not help there: a character without a piece has a lower one. Such a character is in no piece, so
    a text may be cut before and after it. Without byte fallback a run of them becomes one unknown piece, so there the
    run stays whole.
    """
    from tokenizers import Regex, pre_tokenizers

    normal = {piece.text for piece in pieces if piece.type == NORMAL}
    reserved = (piece.text for piece in pieces if piece.type not in (NORMAL, USER_DEFINED))
    if any(character not in normal for text in reserved for character in text):
        known = "".join(f"\\x{{{ord(text):x}}}" for text in sorted(normal) if len(text) == 1)
        pattern = Regex(f"[^{known}]" if byte_fallback else f"[^{known}]+")
        fast.pre_tokenizer = pre_tokenizers.Split(pattern, behavior="isolated")


def _unknown(pieces: list[_Piece]) -> str:
    return next(piece.text for piece in pieces if piece.type == UNKNOWN)  # SentencePiece opens no model without


def _normalizer(spec: "NormalizerSpec", *, real_spaces: bool) -> "normalizers.Sequence":
    from tokenizers import Regex, normalizers

    steps = charsmap_normalizers(spec.precompiled_charsmap) if spec.precompiled_charsmap else []
    if spec.remove_extra_whitespaces:
        # `PieceTokenizer` has the text on each side of a real space mark encoded for itself.
        at_ends = r"\A +| +\z|(?<=\u2581) +| +(?=\u2581)" if real_spaces else r"\A +"
        steps += [normalizers.Replace(Regex(at_ends), ""), normalizers.Replace(Regex(" {2,}"), " ")]
    if spec.add_dummy_prefix:
        steps.append(normalizers.Prepend(SPACE_MARK))  # nothing before an empty text
    if not real_spaces:
        steps.append(normalizers.Replace(" ", SPACE_MARK))
    if spec.remove_extra_whitespaces and not real_spaces:
        steps.append(normalizers.Replace(Regex(r"\u2581+\z"), ""))  # real marks at the end go, too
    return normalizers.Sequence(steps)


def _decoder(spec: "NormalizerSpec", pieces: list[_Piece], surface: str) -> "decoders.Sequence":
    from tokenizers import Regex, decoders

    # An unknown piece is read as a surface with spaces around it, which are not those that go from the beginning.
    unknown = re.escape(_unknown(pieces))
    steps: list[decoders.Decoder] = [
        decoders.Replace(Regex(rf"\A{unknown}\z"), SEPARATOR),
        decoders.Replace(SPACE_MARK, " "),
        decoders.ByteFallback(),
        decoders.Fuse(),
    ]
    if spec.add_dummy_prefix or spec.remove_extra_whitespaces:
        steps.append(decoders.Strip(" ", MANY if spec.remove_extra_whitespaces else 1, 0))
    return decoders.Sequence([*steps, decoders.Replace(SEPARATOR, surface)])
