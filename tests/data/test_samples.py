from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from configs.errors import DataError
from configs.schema import DataSource
from data.dataset import Split
from data.samples import CYCLE, Samples

T = 16


@pytest.fixture(scope="module")
def folders(make_dataset: Callable[..., Path]) -> list[Path]:
    return [make_dataset(documents=30, seed=seed, validation_fraction=0.3) for seed in (1, 2, 3)]


def blend(folders: list[Path], weights: list[float]) -> list[DataSource]:
    return [DataSource(path=path, weight=weight) for path, weight in zip(folders, weights, strict=True)]


def test_a_sample_is_a_window_and_its_next_token(folders: list[Path]) -> None:
    samples = Samples(blend(folders, [3, 2, 1]), "train", T, seed=0)
    splits = [Split(folder, "train") for folder in folders]
    for k in (0, 1, 999, 5000, 10**15):
        source, window, offset = samples.locate(k)
        assert offset == window * T
        assert samples[k].shape == (T + 1,)
        assert samples[k].dtype == np.int64
        np.testing.assert_array_equal(samples[k], splits[source].read(offset, T + 1))


def test_sample_k_depends_on_nothing_but_seed_and_k(folders: list[Path]) -> None:
    sources = blend(folders, [3, 2, 1])
    forward = Samples(sources, "train", T, seed=7)
    in_order = [forward.locate(k) for k in range(3 * CYCLE)]
    ranks = [Samples(sources, "train", T, seed=7) for _ in range(4)]  # data-parallel ranks, each with its stride
    for rank, samples in enumerate(ranks):
        assert [samples.locate(k) for k in range(rank, 3 * CYCLE, 4)] == in_order[rank::4]
    backward = Samples(sources, "train", T, seed=7)
    assert [backward.locate(k) for k in reversed(range(3 * CYCLE))] == in_order[::-1]
    other = Samples(sources, "train", T, seed=8)
    assert [other.locate(k) for k in range(CYCLE)] != in_order[:CYCLE]


def test_an_epoch_is_every_window_once_in_a_new_order(folders: list[Path]) -> None:
    samples = Samples(blend(folders[:1], [1]), "train", T, seed=0)
    (windows,) = samples.windows
    epochs = [[samples.locate(epoch * windows + i)[1] for i in range(windows)] for epoch in range(3)]
    for epoch in epochs:
        assert sorted(epoch) == list(range(windows))
    assert epochs[0] != epochs[1] != epochs[2] != epochs[0]


def test_windows_cover_the_split_without_overlap(folders: list[Path]) -> None:
    samples = Samples(blend(folders[:1], [1]), "validation", T, seed=0)
    split = Split(folders[0], "validation")
    (windows,) = samples.windows
    assert windows * T + 1 <= split.tokens < (windows + 1) * T + 1
    joined = np.concatenate([samples[k][:-1] for k in range(windows)])
    np.testing.assert_array_equal(joined, split.read(0, windows * T))


def test_validation_is_sequential_and_the_same_for_every_seed(folders: list[Path]) -> None:
    sources = blend(folders, [3, 2, 1])
    one, other = (Samples(sources, "validation", T, seed=seed) for seed in (0, 1))
    located = [one.locate(k) for k in range(500)]
    assert located == [other.locate(k) for k in range(500)]
    assert one.fingerprint == other.fingerprint
    for source in range(3):
        windows = [window for s, window, _ in located if s == source]
        assert windows == [i % one.windows[source] for i in range(len(windows))]


def test_blend_keeps_its_proportions_in_every_cycle(folders: list[Path]) -> None:
    samples = Samples(blend(folders, [0.5, 0.3, 0.2]), "train", T, seed=0)
    assert samples.quotas == (512, 307, 205)
    for cycle in range(3):
        drawn = Counter(samples.locate(cycle * CYCLE + i)[0] for i in range(CYCLE))
        assert tuple(drawn[source] for source in range(3)) == samples.quotas
    mixed = [samples.locate(k)[0] for k in range(100)]
    assert len(set(mixed)) == 3


def test_a_blended_source_is_drawn_epoch_by_epoch(folders: list[Path]) -> None:
    samples = Samples(blend(folders, [3, 2, 1]), "train", T, seed=0)
    drawn: list[list[int]] = [[], [], []]
    k = 0
    while any(len(drawn[s]) < 2 * samples.windows[s] for s in range(3)):
        source, window, _ = samples.locate(k)
        drawn[source].append(window)
        k += 1
    for source, windows in enumerate(samples.windows):
        for epoch in range(2):
            assert sorted(drawn[source][epoch * windows : (epoch + 1) * windows]) == list(range(windows))


def test_order_never_changes_silently(folders: list[Path]) -> None:
    """A run that resumes after an upgrade must see the same data: do not update these values."""
    samples = Samples(blend(folders, [3, 2, 1]), "train", T, seed=0)
    samples.windows = (1000, 2000, 3000)
    assert [samples.locate(k)[:2] for k in (0, 1, 2, 3, 100_000)] == GOLDEN


def test_attributes(folders: list[Path]) -> None:
    samples = Samples(blend(folders[:2], [1, 1]), "train", T, seed=0)
    manifest = Split(folders[0], "train").manifest
    assert (samples.vocab_size, samples.tokenizer_hash) == (257, manifest.tokenizer.hash)
    fingerprints = {
        samples.fingerprint,
        Samples(blend(folders[:2], [1, 2]), "train", T, seed=0).fingerprint,
        Samples(blend(folders[:2], [1, 1]), "train", T, seed=1).fingerprint,
        Samples(blend(folders[:2], [1, 1]), "train", T + 1, seed=0).fingerprint,
        Samples(blend(folders[1::-1], [1, 1]), "train", T, seed=0).fingerprint,
        Samples(blend(folders[:2], [1, 1]), "validation", T, seed=0).fingerprint,
    }
    assert len(fingerprints) == 6
    assert samples.fingerprint == Samples(blend(folders[:2], [2, 2]), "train", T, seed=0).fingerprint


def test_refusals(folders: list[Path], make_dataset: Callable[..., Path]) -> None:
    pieces = make_dataset(tokenizer="bpe", vocab_size=320)
    with pytest.raises(DataError, match="were prepared with different tokenizers"):
        Samples(blend([folders[0], pieces], [1, 1]), "train", T, seed=0)
    with pytest.raises(DataError, match=r"data\.sources\.1\.weight = 0\.0001: would never be drawn"):
        Samples(blend(folders[:2], [1, 0.0001]), "train", T, seed=0)
    with pytest.raises(DataError, match=r"fewer than one window: training\.sequence_length = 1000000 must be at most"):
        Samples(blend(folders[:1], [1]), "train", 10**6, seed=0)
    with pytest.raises(IndexError):
        Samples(blend(folders[:1], [1]), "train", T, seed=0)[-1]


def test_one_window_is_enough(folders: list[Path]) -> None:
    tokens = Split(folders[0], "train").tokens
    samples = Samples(blend(folders[:1], [1]), "train", tokens - 1, seed=0)
    assert samples.windows == (1,)
    assert len(samples[12345]) == tokens


GOLDEN = [(0, 726), (0, 289), (1, 1328), (1, 265), (2, 1190)]
