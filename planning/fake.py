"""One rank of a job of any size on this machine: process groups that talk to nobody, tensors without memory."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch.distributed as dist


@contextmanager
def fake_ranks(world_size: int, rank: int = 0) -> Iterator[None]:
    """Within the block this process is `rank` of `world_size`; collectives return at once and move nothing.

    The backend is torch's own, made for this (`torch.testing._internal.distributed.fake_pg`).
    """
    from torch.testing._internal.distributed.fake_pg import FakeStore

    from parallel.quiet import megatron_mappings, megatron_parallel_state, old_names_of_collectives

    assert not dist.is_initialized(), "a process has one world"
    old_names_of_collectives()
    megatron_mappings()
    dist.init_process_group("fake", store=FakeStore(), rank=rank, world_size=world_size)
    try:
        yield
    finally:
        megatron_parallel_state().destroy_model_parallel()
        dist.destroy_process_group()
