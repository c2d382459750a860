"""Who orthogonalises what, at what cost in collectives, and what a skipped update leaves alone."""

from collections import Counter
from itertools import pairwise
from typing import NamedTuple
from unittest import mock

import pytest
import torch
from torch import Tensor

from configs.schema import Config
from parallel import topology as topologies
from parallel.gradients import sum_partial_gradients
from parallel.optimizers import muon
from parallel.optimizers.fragments import FragmentOptimizer, stretches
from parallel.optimizers.muon import Muon
from parallel.optimizers.newton_schulz import orthogonalise
from stability.guard import Judgement
from tests.distributed import spawn
from tests.layouts import VOCAB, RandomSamples, config, single_topology, update
from tests.parallel.test_spectral import CollectiveCounter
from training.batches import Batches
from training.build import Trainer, build_chunks, build_trainer
from training.optimizer import build_optimizer


def gradients(trainer: Trainer, step: int, topology: topologies.Topology) -> None:
    with trainer.engine.accumulate():
        trainer.pipeline.train(*Batches(RandomSamples(16), 8, topology).step(step))
        sum_partial_gradients(trainer.parameters(), topology.tensor)
        trainer.spectral.pull_back()


class Seen(NamedTuple):
    """Of one rank's updates by Muon and StableAdamW."""

    shapes: list[tuple[int, ...]]
    """Of the matrices it orthogonalised."""
    more: dict[str, Counter[str]]
    """Collectives that AdamW's update does not have."""
    cut: bool
    """It holds a part only of its shard of some matrix."""


def one_update(cfg: Config) -> Seen:
    topology = topologies.start(cfg.parallel, "cpu")
    counts, shapes = {}, []

    def noted(matrix: Tensor) -> Tensor:
        shapes.append(tuple(matrix.shape))
        return orthogonalise(matrix)

    for name in ("adamw", "stable_adamw", "muon"):
        optimizer_config = cfg.optimizer.model_copy(update={"name": name})
        trainer = build_trainer(cfg.model_copy(update={"optimizer": optimizer_config}), topology, VOCAB)
        gradients(trainer, 0, topology)
        with mock.patch.object(muon, "orthogonalise", noted), CollectiveCounter() as counter:
            update(trainer, cfg)
        counts[name] = counter.counts
    parts = stretches([held for held in trainer.engine._optimizer.optimizer.fragments() if "momentum" in held.moments])
    cut = any(0 < part.last - part.first < torch.Size(part.shape).numel() for part in parts)
    more = {name: counts[name] - counts["adamw"] for name in ("stable_adamw", "muon")}
    return Seen(shapes, more, cut)


def test_each_matrix_is_orthogonalised_once_and_whole_after_two_all_to_alls() -> None:
    """With tp = 2 and dp = 2, of which one matrix lies on both data-parallel ranks."""
    ranks = spawn(4, one_update, config(4, parallel={"tp": 2, "zero_stage": 2}))
    layer = [(32, 32)] * 4 + [(128, 32), (32, 128)]
    assert Counter(shape for rank in ranks for shape in rank.shapes) == Counter(layer * 4)
    assert all(rank.shapes for rank in ranks), "the work is shared"
    assert all(rank.cut for rank in ranks)
    for rank in ranks:
        assert rank.more == {"muon": Counter({"alltoall_base_": 2}), "stable_adamw": Counter({"allreduce_": 2})}


def kept_moments(optimizer: FragmentOptimizer) -> list[Tensor]:
    return [moment.clone() for held in optimizer.fragments() for moment in held.moments.values()]


def skip_in_the_middle(cfg: Config) -> None:
    topology = topologies.start(cfg.parallel, "cpu")
    trainer = build_trainer(cfg, topology, VOCAB)
    optimizer = trainer.engine._optimizer.optimizer
    states, weights = [], []
    for step, keep in enumerate([True, False, True]):
        gradients(trainer, step, topology)
        trainer.engine.step(cfg.optimizer.lr, lambda norm, keep=keep: Judgement(0, False, 1.0, keep, 1.0, None))
        states.append([group["step"] for group in optimizer.param_groups] + kept_moments(optimizer))
        weights.append([p.detach().clone() for p in trainer.parameters()])
    assert [state[0] for state in states] == [1, 1, 2]
    for values in (states, weights):
        (first, skipped), (_, last) = pairwise(values)
        assert all(torch.equal(torch.as_tensor(a), torch.as_tensor(b)) for a, b in zip(first, skipped, strict=True))
        assert any(not torch.equal(torch.as_tensor(a), torch.as_tensor(b)) for a, b in zip(skipped, last, strict=True))


@pytest.mark.parametrize("name", ["muon", pytest.param("stable_adamw", marks=pytest.mark.slow)])
def test_a_skipped_update_leaves_moments_their_count_and_weights_alone(name: str) -> None:
    spawn(1, skip_in_the_middle, config(1, optimizer={"name": name}))


def test_muon_keeps_one_moment_of_matrices_of_the_layers_and_adams_of_the_rest() -> None:
    cfg = config(1, model={"bias": True, "qk_norm": True, "reparam": {"kind": "sigma"}}, optimizer={"name": "muon"})
    (chunk,) = build_chunks(cfg, single_topology(), VOCAB)
    optimizer = build_optimizer(chunk.named_parameters(), cfg.optimizer, torch.device("cpu"), VOCAB)
    assert isinstance(optimizer, Muon)
    single = {name for name, p in chunk.named_parameters() if optimizer.moment_keys(p) == ("momentum",)}
    parts = ("attention.qkv", "attention.output", "feedforward.up", "feedforward.down")
    assert single == {f"layers.{i}.{part}.weight" for i in range(4) for part in parts}
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.1, 0.0]
