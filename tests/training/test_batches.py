"""A step's batch is the same set of samples for every data-parallel size, read ahead or not."""

import threading
from dataclasses import replace

import pytest
import torch

from configs.errors import DataError
from tests.layouts import RandomSamples, single_topology
from training.batches import Batches


@pytest.mark.parametrize("dp_size", [1, 2, 4, 8])
def test_shares_make_up_the_global_batch(dp_size: int) -> None:
    samples = RandomSamples(16)
    expected = torch.stack([torch.from_numpy(samples[k]) for k in range(24, 32)])
    shares = []
    for dp_rank in range(dp_size):
        topology = replace(single_topology(), dp_rank=dp_rank, dp_size=dp_size)
        tokens, targets = Batches(samples, 8, topology).step(3)
        assert torch.equal(tokens[:, 1:], targets[:, :-1])
        shares.append(torch.cat([tokens, targets[:, -1:]], dim=1))
    assert torch.equal(torch.cat(shares), expected)


class Counted(RandomSamples):
    """Says which samples were read, by which thread; sample `broken` cannot be."""

    def __init__(self, broken: int = -1) -> None:
        super().__init__(16)
        self.broken = broken
        self.read: list[tuple[int, str]] = []

    def __getitem__(self, k: int):  # type: ignore[no-untyped-def]
        self.read.append((k, threading.current_thread().name))
        if k == self.broken:
            raise DataError(f"sample {k} is damaged")
        return super().__getitem__(k)


JUMPS = [0, 1, 2, 3, 7, 8, 6, 2, 3, 4, 4, 100, 101]
"""Steps in order, over batches that are left out, back by a rollback, the same again, far ahead."""


@pytest.mark.parametrize("prefetch", [1, 2, 5])
def test_batches_read_ahead_are_the_same_bits(prefetch: int) -> None:
    plain, samples = Batches(RandomSamples(16), 8, single_topology()), Counted()
    with Batches(samples, 8, single_topology(), prefetch=prefetch) as ahead:
        for step in JUMPS:
            for ours, theirs in zip(ahead.step(step), plain.step(step), strict=True):
                assert torch.equal(ours, theirs), step
    assert {thread for _, thread in samples.read} == {"batches_0"}


def test_no_more_is_read_ahead_than_asked_for_and_nothing_twice_in_order() -> None:
    samples = Counted()
    with Batches(samples, 4, single_topology(), prefetch=2) as batches:
        for step in range(5):
            batches.step(step)
        batches._ahead[-1][1].result()
        assert [k for k, _ in samples.read] == list(range(4 * 7))


def test_without_prefetch_there_is_no_thread() -> None:
    samples = Counted()
    with Batches(samples, 4, single_topology()) as batches:
        batches.step(3)
        assert [k for k, _ in samples.read] == [12, 13, 14, 15]
        assert {thread for _, thread in samples.read} == {threading.current_thread().name}


def test_an_error_ahead_is_raised_when_training_comes_to_it_and_ends_the_thread() -> None:
    samples = Counted(broken=9)
    with pytest.raises(DataError, match="sample 9 is damaged"):
        run_until_it_breaks(samples)
    assert max(k for k, _ in samples.read) < 24, "what was waiting is not read any more"
    assert not any(thread.name.startswith("batches") for thread in threading.enumerate())


def run_until_it_breaks(samples: Counted) -> None:
    with Batches(samples, 4, single_topology(), prefetch=2) as batches:
        batches.step(0), batches.step(1)
        batches.step(2)
        pytest.fail("batch 2 has a damaged sample")


def test_a_damaged_batch_that_is_skipped_hurts_nobody() -> None:
    with Batches(Counted(broken=9), 4, single_topology(), prefetch=3) as batches:
        batches.step(1)
        assert torch.equal(batches.step(3)[0], Batches(RandomSamples(16), 4, single_topology()).step(3)[0])
