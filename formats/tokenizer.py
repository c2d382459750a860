"""Our tokenizers as Hugging Face fast tokenizers, which open without sentencepiece or code of ours.

`AutoTokenizer.from_pretrained(folder)` gives the ids of `tokenizer.encode` and the text of `tokenizer.decode` (with
`skip_special_tokens=True`); no token is added before or after a text, and text that spells a special token stays text.
`formats.tokenizer_pieces` says how a SentencePiece model is expressed, and where that ends.
"""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from configs.errors import DataError
from data.huggingface import HuggingFaceTokenizer
from data.tokenizer import ByteTokenizer, PieceTokenizer, Tokenizer
from formats.tokenizer_bytes import fast_bytes
from formats.tokenizer_pieces import fast_pieces
from formats.tokenizer_texts import TEXTS, in_lots

if TYPE_CHECKING:
    from tokenizers import Tokenizer as FastTokenizer

TOKENIZER = "tokenizer.json"
CONFIG = "tokenizer_config.json"
SPECIAL_TOKENS = "special_tokens_map.json"


def write_fast_tokenizer(tokenizer: Tokenizer, folder: Path, context: int, texts: Iterable[str] = ()) -> None:
    """Write `tokenizer` into `folder` as tokenizer.json, tokenizer_config.json and special_tokens_map.json.

    Before anything is written, ids and text of both are compared on `formats.tokenizer_texts`, on every piece of the
    vocabulary and on `texts`. `context` is the longest sequence that the model takes, in tokens.

    Raises: DataError in one line, with the first text that differs, if it cannot be expressed exactly.
    """
    fast, name = _fast(tokenizer)
    compare(tokenizer, fast, name, [*TEXTS, *in_lots(fast.get_vocab(with_added_tokens=True)), *texts])
    folder.mkdir(parents=True, exist_ok=True)
    eod = fast.id_to_token(tokenizer.eod)
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": eod,
        "clean_up_tokenization_spaces": False,
        "model_max_length": context,
        # Otherwise a text that spells the end of a document would end one.
        "split_special_tokens": True,
    }
    (folder / TOKENIZER).write_text(fast.to_str(pretty=True), encoding="utf-8")
    _write_json(folder / CONFIG, settings)
    _write_json(folder / SPECIAL_TOKENS, {"eos_token": eod})


def compare(tokenizer: Tokenizer, fast: "FastTokenizer", name: str, texts: Iterable[str]) -> None:
    """Raises: DataError with the first text of which `fast` gives other ids, or does not give the same text back."""
    for text in texts:
        ids = tokenizer.encode(text).tolist()
        fast_ids = fast.encode(text).ids
        if fast_ids != ids:
            first = next((i for i, (a, b) in enumerate(zip(ids, fast_ids, strict=False)) if a != b), len(fast_ids))
            raise DataError(
                f"{name}: has no equal among fast tokenizers: token {first} of {_shown(text)} is "
                f"{ids[first : first + 3]} here and {fast_ids[first : first + 3]} there"
            )
        if (back := fast.decode(ids)) != (ours := tokenizer.decode(ids)):
            raise DataError(
                f"{name}: has no equal among fast tokenizers: the ids of {_shown(text)} are read back as "
                f"{_shown(ours)} here and {_shown(back)} there"
            )


def _fast(tokenizer: Tokenizer) -> "tuple[FastTokenizer, str]":
    """The fast tokenizer as it is after reading its file, and a name for messages."""
    from tokenizers import Tokenizer as FastTokenizer

    if isinstance(tokenizer, ByteTokenizer):
        built, name = fast_bytes(), "byte tokenizer"
    elif isinstance(tokenizer, PieceTokenizer):
        built, name = fast_pieces(tokenizer), str(tokenizer.path)
    elif isinstance(tokenizer, HuggingFaceTokenizer):
        built, name = _as_trained_with(tokenizer), str(tokenizer.path)
    else:
        raise DataError(f"{type(tokenizer).__name__}: this kind of tokenizer cannot be written as a fast tokenizer")
    fast = FastTokenizer.from_str(built.to_str())
    fast.encode_special_tokens = True  # as split_special_tokens does
    return fast, name


def _as_trained_with(tokenizer: HuggingFaceTokenizer) -> "FastTokenizer":
    """The file's tokenizer without what the data was made without: tokens around a text, truncation, padding."""
    from tokenizers import Tokenizer as FastTokenizer
    from tokenizers import processors

    fast = FastTokenizer.from_file(str(tokenizer.path))
    fast.no_truncation()
    fast.no_padding()
    if fast.post_processor is not None:  # None cannot be set, and a file without one stays as it is
        fast.post_processor = processors.Sequence([])
    return fast


def _write_json(path: Path, value: dict) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _shown(text: str) -> str:
    """The beginning of a text, in one line of ASCII."""
    return ascii(text if len(text) <= 60 else text[:60] + "...")
