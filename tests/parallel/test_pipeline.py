"""Which chunks and layers a pipeline rank holds."""

import pytest

from configs.schema import ParallelConfig
from parallel.pipeline import stage_indices, stage_layers


@pytest.mark.parametrize("schedule", ["gpipe", "1f1b", "interleaved_1f1b", "interleaved_zero_bubble", "zbv"])
@pytest.mark.parametrize("pp", [1, 2, 4])
def test_every_layer_is_held_once(schedule: str, pp: int) -> None:
    config = ParallelConfig.model_validate({"pp": pp, "schedule": schedule})
    stages = pp * config.chunks
    held = [layer for rank in range(pp) for s in stage_indices(config, rank) for layer in stage_layers(16, stages, s)]
    assert sorted(held) == list(range(16))


def test_zbv_turns_back_so_that_one_rank_has_both_ends() -> None:
    config = ParallelConfig(pp=4, schedule="zbv")
    assert [stage_indices(config, rank) for rank in range(4)] == [[0, 7], [1, 6], [2, 5], [3, 4]]


def test_interleaving_goes_round() -> None:
    config = ParallelConfig(pp=2, schedule="interleaved_1f1b", stages_per_rank=3)
    assert [stage_indices(config, rank) for rank in range(2)] == [[0, 2, 4], [1, 3, 5]]
