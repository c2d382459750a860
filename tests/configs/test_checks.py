"""Our rules against torch's own schedules."""

from types import SimpleNamespace

import pytest

from configs.checks import fits_schedule
from configs.schema import Config

SCHEDULES = {
    "gpipe": "GPipe",
    "1f1b": "1F1B",
    "interleaved_1f1b": "Interleaved1F1B",
    "interleaved_zero_bubble": "InterleavedZeroBubble",
    "zbv": "ZBVZeroBubble",
}


def torch_accepts(schedule: str, pp: int, chunks: int, micro_batches: int) -> bool:
    """Whether torch builds the schedule of rank 0."""
    import torch
    from torch.distributed.pipelining.schedules import get_schedule_class

    count = pp * chunks
    stages = [
        SimpleNamespace(
            is_first=index == 0,
            is_last=index == count - 1,
            num_stages=count,
            stage_index=index,
            group_size=pp,
            group_rank=0,
            group=None,
            device="cpu",
            has_backward=True,
            submod=torch.nn.Identity(),
            stage_index_to_group_rank={stage: stage % pp for stage in range(count)},
        )
        for index in range(0, count, pp)
    ]
    try:
        get_schedule_class(SCHEDULES[schedule])(
            stages if chunks > 1 else stages[0], micro_batches, loss_fn=lambda output, target: output
        )
    except ValueError:
        return False
    return True


@pytest.mark.parametrize("pp", [2, 3, 4])
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_the_numbers_of_micro_batches_are_those_torch_accepts(schedule, pp):
    config = Config.model_validate({"data": {"sources": [{"path": "x"}]}, "parallel": {"pp": pp, "schedule": schedule}})
    counts = range(1, 14)
    ours = [count for count in counts if fits_schedule(config, count)]
    assert ours == [count for count in counts if torch_accepts(schedule, pp, config.parallel.chunks, count)]
