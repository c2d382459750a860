"""The byte tokenizer as a fast tokenizer."""

from typing import TYPE_CHECKING

from data.tokenizer import ByteTokenizer

if TYPE_CHECKING:
    from tokenizers import Tokenizer as FastTokenizer

EOD = "<eod>"


def fast_bytes() -> "FastTokenizer":
    """Byte-level BPE without merges: a token for each byte, its id the byte; then the end of a document."""
    from tokenizers import AddedToken, decoders, models, pre_tokenizers
    from tokenizers import Tokenizer as FastTokenizer

    vocabulary = {letter: byte for byte, letter in enumerate(_letters())} | {EOD: ByteTokenizer.eod}
    fast = FastTokenizer(models.BPE(vocabulary, []))
    fast.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    fast.decoder = decoders.ByteLevel()
    fast.add_special_tokens([AddedToken(EOD, normalized=False)])
    return fast


def _letters() -> list[str]:
    """The character by which byte-level BPE writes each byte: printable Latin-1 as it is, the others from U+0100 on.

    Source: Radford et al. 2019 (GPT-2), `bytes_to_unicode`.
    """
    itself = {*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)}
    others = iter(range(256, 512))
    return [chr(byte) if byte in itself else chr(next(others)) for byte in range(256)]
