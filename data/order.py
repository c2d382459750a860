"""A pseudo-random order of n things that takes no memory: a keyed permutation computed one element at a time."""

import hashlib
import json
from math import isqrt

ROUNDS = 8


class Permutation:
    """A permutation of range(n), chosen by a key: `permutation[i]` is the i-th element.

    A Feistel network over pairs (left, right) of digits in base ceil(sqrt(n)), with BLAKE2b as its round function.
    Results outside range(n) are fed back in until they fall inside (cycle walking); as the base squared exceeds n by
    at most 2 sqrt(n), that is rare. The key may be any strings and integers; equal keys give equal orders, on every
    machine and for good.

    Sources: Luby and Rackoff 1988; Black and Rogaway 2002, "Ciphers with arbitrary finite domains".
    Raises: IndexError outside range(n).
    """

    def __init__(self, n: int, *key: int | str) -> None:
        assert n >= 1, n
        self.n = n
        self.base = isqrt(n - 1) + 1
        self._hash = hashlib.blake2b(digest_size=16, key=hashlib.blake2b(json.dumps(key).encode()).digest())

    def __getitem__(self, index: int) -> int:
        if not 0 <= index < self.n:
            raise IndexError(f"{index} is outside range({self.n})")
        index = self._shuffle(index)
        while index >= self.n:
            index = self._shuffle(index)
        return index

    def _shuffle(self, index: int) -> int:
        left, right = divmod(index, self.base)
        for number in range(ROUNDS):
            left, right = right, (left + self._round(number, right)) % self.base
        return left * self.base + right

    def _round(self, number: int, half: int) -> int:
        state = self._hash.copy()
        state.update(b"%d %d" % (number, half))
        return int.from_bytes(state.digest(), "little")
