"""The engine when something goes wrong inside a step."""

import pytest

from parallel import topology as topologies
from tests.distributed import RankFailed, spawn
from tests.layouts import VOCAB, RandomSamples, config
from training.batches import Batches
from training.build import build_trainer


def _fail_on_rank_0(cfg) -> None:  # type: ignore[no-untyped-def]
    topology = topologies.start(cfg.parallel, "cpu")
    trainer = build_trainer(cfg, topology, VOCAB)
    with trainer.engine.accumulate():
        trainer.pipeline.train(*Batches(RandomSamples(16), 8, topology).step(0))
        if topology.rank == 0:
            trainer.parameters()[0].grad = None  # it broke in the middle of its backward pass
            raise ValueError("broken")


@pytest.mark.parametrize("stage", [1, 2])
def test_a_rank_that_fails_inside_a_step_says_so_and_waits_for_nobody(stage: int) -> None:
    """Leaving the block reduces gradients over ranks: with half of them missing, ranks would wait for each other."""
    cfg = config(2, parallel={"zero_stage": stage})
    with pytest.raises(RankFailed, match=r"rank 0:(.|\n)*ValueError: broken"):
        spawn(2, _fail_on_rank_0, cfg, timeout=60)
