"""Texts on which a tokenizer and its translation are compared."""

from collections.abc import Iterable, Iterator

_WORDS = "The quick brown fox isn't 12,345.67 times as lazy: x += f(y[i], **z)  # naïve Straße"

TEXTS = (
    "",
    _WORDS,
    " ",
    "   leading and trailing   ",
    "a  b   c    d     e",
    "\n",
    "\n\n  \n\t\n",
    "def f(x):\n    return x\n\n\tif x:\r\n\t\tpass\r",
    "tabs\t\tand\ttabs \t mixed",
    "emoji 🙂👩‍👩‍👧 🏳️‍🌈 1️⃣ 🇫🇷 \U0001f44d\U0001f3fd",
    "漢字かな交じり文、カタカナ。한국어 텍스트 中文",
    "é e\u0301 ñ n\u0303 a\u030a\u0323 ạ\u0301 a\u0323\u0302 a\u0302\u0323",
    "\ufb01\u0301 \u1100\u1161\u11a8 \u304b\u3099",
    "שלום עולם العربية \u202eright to left\u202c فارسی",
    "हिन्दी क्षत्रिय தமிழ் ไทย ຂໍ້ \U0001d518\U0001d52b\U0001d526 𐍈",
    "\u00a0\u3000\u200b\u200d\u2028\u2029\ufeff\u00ad\u0085\u180e",
    "\x00\x01\x07\x08\x0b\x0c\x1b\x1f\x7f\x80\x9f",
    "a\x00b \x00\x00 c",
    "space mark \u2581x\u2581\u2581 \u2581",
    "\u2581",
    "\u2581\u2581x \u2581",
    "\u2047 \u2585 \ufffd \ufffe \U0010ffff",
    "<unk><s></s><pad><eod><mask><|endoftext|>[UNK]",
    "<0x41><0x0A> <0xff><0xFF <0x00>",
    "ﬁ ﬂ ① ½ Ⅷ ㎏ ™ ℃ \uff46\uff55\uff4c\uff4c ﾊﾝｶｸ ¨ \u00b4 …",
    "Ǆ ẞ ß İ \u0131 \u017f K Å",
    *(character * length for character in " =-aé漢🙂\n\t" for length in (2, 3, 5, 7, 11, 16, 23, 64, 257)),
    *(" " * length + "x" for length in range(1, 40)),
    *("".join(f"x{chr(code)}" for code in range(start, start + 256)) for start in range(0, 0xD800, 256)),
    *("".join(f"x{chr(code)}" for code in range(start, start + 256)) for start in range(0xE000, 0x20000, 256)),
    *(before + character * length for before in ("# ", "    # ") for character in "=-" for length in range(2, 80)),
    _WORDS * 50,
    (_WORDS + "\n") * 50,
)


def in_lots(pieces: Iterable[str], size: int = 50) -> Iterator[str]:
    """`pieces` one after the other, so many to a text, so that each is seen between two others."""
    ordered = sorted(pieces)
    for start in range(0, len(ordered), size):
        yield "".join(ordered[start : start + size])
