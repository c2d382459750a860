"""A step's batch is the same set of samples for every data-parallel size."""

from dataclasses import replace

import pytest
import torch

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
