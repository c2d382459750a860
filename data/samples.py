"""Samples: the k-th sequence of a run as a function of seed and k alone.

It does not depend on the number of ranks, the micro-batch size, or how many samples the run will draw, and needs no
state: a resumed run asks for the next k.
"""

from bisect import bisect_right
from collections.abc import Sequence
from functools import lru_cache
from itertools import accumulate

import numpy as np

from configs.errors import DataError
from configs.schema import DataSource
from data.dataset import Split
from data.manifest import SplitName, TokenizerRecord, digest
from data.order import Permutation

CYCLE = 1024


class Samples:
    """An endless sequence of samples, blended from prepared datasets by weight.

    Each source is cut into windows of `sequence_length` tokens, plus the next token as the last target; windows cross
    document borders and do not overlap. Blending goes by cycles of 1,024 samples: every source has a fixed quota of
    each cycle, in an order permuted anew per cycle. Training takes a source's windows in an order permuted anew per
    epoch; validation takes them as they lie, whatever the seed.

    Raises: DataError for a damaged source, different tokenizers, a split shorter than one window, or a weight too
    small to ever be drawn.
    """

    vocab_size: int
    tokenizer_hash: str
    windows: tuple[int, ...]
    """Windows per source; one epoch of it."""
    quotas: tuple[int, ...]
    """Samples per source in each cycle."""
    fingerprint: str
    """Objects with equal fingerprints have equal samples."""

    def __init__(self, sources: Sequence[DataSource], split: SplitName, sequence_length: int, seed: int) -> None:
        self.sequence_length = sequence_length
        self._split = split
        self._seed = seed if split == "train" else 0
        self._splits = [Split(source.path, split) for source in sources]
        tokenizer = _common_tokenizer(self._splits)
        self.vocab_size, self.tokenizer_hash = tokenizer.vocab_size, tokenizer.hash
        self.windows = tuple(_count_windows(data, sequence_length) for data in self._splits)
        self.quotas = _quotas(sources)
        datasets = [data.manifest.fingerprint for data in self._splits]
        self.fingerprint = digest([datasets, self.quotas, split, sequence_length, self._seed])

    def __getitem__(self, k: int) -> np.ndarray:
        """Sample k: `sequence_length` + 1 tokens, int64. Raises: IndexError if k is negative."""
        source, _, offset = self.locate(k)
        return self._splits[source].read(offset, self.sequence_length + 1)

    def locate(self, k: int) -> tuple[int, int, int]:
        """(index of the source, index of the window, position of its first token in the split) of sample k."""
        if k < 0:
            raise IndexError(f"sample {k}: samples are counted from 0")
        cycle, slot = divmod(int(k), CYCLE)
        source, rank = _lay_out(cycle, self.quotas, self._seed)[slot]
        epoch, window = divmod(cycle * self.quotas[source] + rank, self.windows[source])
        if self._split == "train":
            window = Permutation(self.windows[source], "epoch", self._seed, source, epoch)[window]
        return source, window, window * self.sequence_length

    def split(self, source: int) -> Split:
        """The prepared split of a source."""
        return self._splits[source]


@lru_cache(maxsize=4)
def _lay_out(cycle: int, quotas: tuple[int, ...], seed: int) -> list[tuple[int, int]]:
    """(source, how many samples of that source came before it in the cycle) of each slot of a cycle."""
    ends = list(accumulate(quotas))
    order = Permutation(CYCLE, "blend", seed, cycle)
    drawn = [0] * len(ends)
    slots = []
    for slot in range(CYCLE):
        source = bisect_right(ends, order[slot])
        slots.append((source, drawn[source]))
        drawn[source] += 1
    return slots


def _common_tokenizer(splits: Sequence[Split]) -> TokenizerRecord:
    first = splits[0].manifest.tokenizer
    for data in splits[1:]:
        if data.manifest.tokenizer.hash != first.hash:
            raise DataError(
                f"data.sources: {data.folder} and {splits[0].folder} were prepared with different tokenizers: "
                "prepare both with the same one"
            )
    return first


def _count_windows(data: Split, sequence_length: int) -> int:
    count = (data.tokens - 1) // sequence_length
    if count < 1:
        raise DataError(
            f"{data.folder}: the {data.name} split has {data.tokens} tokens, fewer than one window: "
            f"training.sequence_length = {sequence_length} must be at most {data.tokens - 1}"
        )
    return count


def _quotas(sources: Sequence[DataSource]) -> tuple[int, ...]:
    """Shares of a cycle in proportion to the weights, rounded by largest remainder."""
    total = sum(source.weight for source in sources)
    exact = [CYCLE * source.weight / total for source in sources]
    quotas = [int(share) for share in exact]
    by_remainder = sorted(range(len(exact)), key=lambda i: quotas[i] - exact[i])
    for i in by_remainder[: CYCLE - sum(quotas)]:
        quotas[i] += 1
    for i, (source, quota) in enumerate(zip(sources, quotas, strict=True)):
        if quota == 0:
            raise DataError(
                f"data.sources.{i}.weight = {source.weight:g}: would never be drawn: "
                f"must be at least about 1/{CYCLE} of the sum of weights, {total:g}"
            )
    return tuple(quotas)
