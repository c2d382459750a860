"""Planned memory is that of real ranks, tensor by tensor."""

import pytest

from benchmarks.plan_memory import CASES, VOCAB, configuration, measure, planned
from tests.distributed import spawn

CLOSE = {
    # Stages of a split backward hold some of a micro-batch's tensors beyond what the plan counts.
    "pp 2, zero-bubble": 0.1,
    "pp 2, ZBV": 0.1,
    # The plan takes the order of actions; torch's stages free a received input a little later than that.
    "pp 2, interleaved": 0.06,
}


def assert_as_planned(world_size: int, config, vocab_size: int, tolerance: float) -> None:
    plans = planned(config, vocab_size)
    for rank, found in enumerate(spawn(world_size, measure, config, vocab_size)):
        plan = plans[rank if config.parallel.pp > 1 else 0]
        for phase, size in plan.items():
            assert size == pytest.approx(found[phase], rel=tolerance), (rank, phase)


@pytest.mark.parametrize("parallel", [{"tp": 2, "sequence_parallel": True}, {"pp": 2}], ids=["tp", "pp"])
def test_small_ranks_need_what_was_planned(parallel):
    training = {"micro_batch_size": 1, "recompute": "none" if "pp" in parallel else "selective"}
    assert_as_planned(2, configuration(2, 128, parallel=parallel, training=training | BATCH), 512, 0.1)


BATCH = {"global_batch_size": 4, "sequence_length": 64}


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_every_layout_needs_what_was_planned(name):
    world_size, sections = CASES[name]
    assert_as_planned(world_size, configuration(world_size, **sections), VOCAB, CLOSE.get(name, 0.04))
