"""The engine when something goes wrong inside a step, and what it does without copies."""

import pytest
import torch

from parallel import topology as topologies
from tests.distributed import RankFailed, spawn
from tests.layouts import VOCAB, RandomSamples, config, update
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


def _copies_on_rank(cfg) -> None:  # type: ignore[no-untyped-def]
    topology = topologies.start(cfg.parallel, "cpu")
    trainer = build_trainer(cfg, topology, VOCAB)
    with trainer.engine.accumulate():
        trainer.pipeline.train(*Batches(RandomSamples(16), 8, topology).step(0))
        trainer.spectral.pull_back()
        gradients = {parameter: parameter.grad for parameter in trainer.parameters()}
    owned = list(trainer.engine.owned())
    assert owned
    for fragment in owned:
        own = fragment.parameter.detach().flatten()[fragment.first :]
        assert fragment.weight.data_ptr() == own.data_ptr(), "the optimizer updates the parameter itself"
        if topology.dp_size == 1:
            gradient = gradients[fragment.parameter]
            assert gradient is not None and fragment.gradient is not None
            assert fragment.gradient.data_ptr() == gradient.data_ptr(), "nothing to reduce: nothing is moved"
    before = [fragment.weight.clone() for fragment in owned]
    update(trainer, cfg)
    assert not any(torch.equal(old, fragment.weight) for old, fragment in zip(before, owned, strict=True))


@pytest.mark.parametrize(("ranks", "stage"), [(1, 1), (1, 2), (2, 2)])
def test_weights_are_held_once_and_a_single_ranks_gradients_stay_where_they_are(ranks: int, stage: int) -> None:
    spawn(ranks, _copies_on_rank, config(ranks, model={"reparam": {"kind": "none"}}, parallel={"zero_stage": stage}))
