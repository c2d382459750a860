"""SentencePiece's Unicode rules (`nmt_nfkc`, `nfkc`, ...) as a fast tokenizer's normaliser.

SentencePiece replaces the longest sequence of characters that its table has, again and again, and never reorders marks.
The fast tokenizers' `Precompiled` reads the same table but works by grapheme clusters: it looks up one of less than six
bytes by its shortest prefix, which drops marks, and any other character by character, which composes nothing. Between
characters that must be looked up alone a separator is put here; letter and mark sequences that have a composed form
stay together and are composed (NFC) before the table is read. Exact for every character alone and for canonical
sequences; not for a mark after a letter that itself stands for others (a superscript o with an acute accent).
"""

import unicodedata
from collections import defaultdict
from collections.abc import Iterable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tokenizers import normalizers

SEPARATOR = "\U0010fffe"  # never a character of a text, by Unicode's own word
LEADING, VOWELS, TRAILING = range(0x1100, 0x1113), range(0x1161, 0x1176), range(0x11A8, 0x11C3)  # Hangul jamo
SAME_MARK = {"\u0340": "\u0300", "\u0341": "\u0301", "\u0343": "\u0313"}


def charsmap_normalizers(charsmap: bytes) -> "list[normalizers.Normalizer]":
    """What to apply, in this order, in place of the `precompiled_charsmap` of a SentencePiece model."""
    from tokenizers import Regex, normalizers

    return [
        normalizers.Replace(Regex(_borders()), SEPARATOR),
        normalizers.NFC(),
        normalizers.Precompiled(charsmap),
        normalizers.Replace(SEPARATOR, ""),
    ]


def _borders() -> str:
    """A pattern of the places where no sequence goes on; not before the first character, nor within ASCII but CR LF."""
    groups: dict[frozenset[str], set[str]] = defaultdict(set)
    for mark, heads in _composable().items():
        groups[frozenset(heads)].add(mark)
    marks = {mark for group in groups.values() for mark in group}
    before = [f"(?<!{_any_of(heads)})(?={_class(group)})" for heads, group in groups.items()]
    leading, vowels, trailing = (_class(map(chr, jamo)) for jamo in (LEADING, VOWELS, TRAILING))
    before += [f"(?<!{leading})(?={vowels})", f"(?<!{leading}{vowels})(?={trailing})"]
    composing = _class({*marks, *map(chr, VOWELS), *map(chr, TRAILING)})
    ascii_, other = r"[\x{0}-\x{7f}]", r"[^\x{0}-\x{7f}]"
    return rf"(?!\A)(?:(?={other})(?:{'|'.join(before)}|(?!{composing}))|(?<={other})(?={ascii_})|(?<=\r)(?=\n))"


def _composable() -> dict[str, set[str]]:
    """For each mark, the sequences after which it is part of a character that NFC composes; all but Hangul."""
    heads: dict[str, set[str]] = defaultdict(set)
    for character in map(chr, range(0x110000)):
        decomposition = unicodedata.decomposition(character)
        if not decomposition or decomposition.startswith("<"):
            continue
        whole = unicodedata.normalize("NFD", character)
        if unicodedata.normalize("NFC", whole) == character:
            for i in range(1, len(whole)):
                heads[whole[i]].add(whole[:i])
    return heads | {other: heads[mark] for other, mark in SAME_MARK.items()}


def _any_of(sequences: Iterable[str]) -> str:
    """A pattern of any of the sequences, those that differ in the first character only as one."""
    firsts: dict[str, set[str]] = defaultdict(set)
    for sequence in sequences:
        firsts[sequence[1:]].add(sequence[0])
    ordered = sorted(firsts.items(), key=lambda pair: (len(pair[0]), pair[0]))
    return "|".join(_class(first) + "".join(map(_class, rest)) for rest, first in ordered)


def _class(characters: Iterable[str]) -> str:
    return "[" + "".join(f"\\x{{{ord(character):x}}}" for character in sorted(characters)) + "]"
