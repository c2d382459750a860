"""Training state through a file and back: bit-equal in the same layout, equal tensors in every other."""

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
import torch.distributed.checkpoint as dcp
from torch import Tensor
from torch.distributed.checkpoint import HuggingFaceStorageReader, HuggingFaceStorageWriter
from torch.distributed.tensor import DTensor

from configs.schema import Config
from parallel import topology as topologies
from parallel.gradients import sum_partial_gradients
from tests.distributed import spawn
from tests.layouts import VOCAB, RandomSamples, config, gather_whole, update
from training.batches import Batches
from training.build import build_trainer
from training.checkpoint.state import TrainingState
from training.reductions import mean_loss

MODEL = {
    "heads": 8,
    "kv_heads": 4,
    "norm": "rmsnorm",
    "positions": "rope",
    "activation": "swiglu",
    "qk_norm": True,
    "bias": True,
    "reparam": {"kind": "sigma"},
}
LAYOUTS: dict[str, tuple[int, dict, dict]] = {
    "tp1": (1, {}, {}),
    "tp2": (2, {"tp": 2}, {}),
    "tp4": (4, {"tp": 4}, {}),
    "pp2": (2, {"pp": 2}, {}),
    "tp2 pp2": (4, {"tp": 2, "pp": 2}, {}),
    "pp2 dp2": (4, {"pp": 2}, {}),
    "tp2 dp2": (4, {"tp": 2}, {}),
    "interleaved": (2, {"pp": 2, "schedule": "interleaved_1f1b"}, {}),
    "pp2 dp2 ZeRO-2": (4, {"pp": 2, "zero_stage": 2}, {}),
    "dp4 ZeRO-2 one by one": (4, {"zero_stage": 2}, {"micro_batch_size": 1}),
}
"""Processes, `parallel` and `training`. The last two change dp, ZeRO stage and micro-batch of the others."""

AT, LONGER = 4, 10
"""Steps before the checkpoint, and after it."""

LOSS_NOISE, NORM_NOISE = 1e-6, 1e-5
"""What another order of fp32 sums may do, relatively, in ten steps.

The loss is a mean over 128 tokens: its rounding is a few units in the last place (1.2e-7). Eight are allowed; the most
of all pairs was two, so that weights drift apart is not seen yet. The norm adds squares of 67,000 gradients, each a sum
whose terms cancel: ten times as much; the most was 2e-6. A wrong step count of Adam is 2e-4 of the loss, another batch
1e-2.
"""


class Went(NamedTuple):
    """One rank's whole tensors at a checkpoint, and (loss, gradient norm) of the steps after it."""

    tensors: dict[str, Tensor]
    record: list[tuple[float, float]]


class Rank:
    """One rank that trains, saves and loads; every method is collective."""

    def __init__(self, cfg: Config) -> None:
        self.cfg, self.topology = cfg, topologies.start(cfg.parallel, "cpu")
        self.trainer = build_trainer(cfg, self.topology, VOCAB)
        self.state = TrainingState(self.trainer, self.topology)
        samples = RandomSamples(cfg.training.sequence_length)
        self.batches = Batches(samples, cfg.training.global_batch_size, self.topology)

    def train(self, first: int, until: int) -> list[tuple[float, float]]:
        """The exact (loss, gradient norm) of steps `first` to `until`."""
        return [self._step(step) for step in range(first, until)]

    def _step(self, step: int) -> tuple[float, float]:
        trainer = self.trainer
        with trainer.engine.accumulate():
            loss = trainer.pipeline.train(*self.batches.step(step))
            sum_partial_gradients(trainer.parameters(), self.topology.tensor)
            trainer.spectral.pull_back()
        norm = update(trainer, self.cfg)
        trainer.spectral.refresh()
        return mean_loss(loss, trainer.pipeline, self.topology), norm

    def save(self, folder: Path) -> None:
        dcp.save(self.state.to_save(), storage_writer=HuggingFaceStorageWriter(str(folder), save_distributed=True))

    def load(self, folder: Path) -> None:
        dcp.load(self.state.to_load(), storage_reader=HuggingFaceStorageReader(str(folder)))
        self.state.loaded(AT)

    def tensors(self) -> dict[str, Tensor]:
        """The state whole: u, v and sigma as a checkpoint has them, the rest as `tests.layouts` joins shards."""
        parameters = self.trainer.named_parameters()
        kinds = {"model": {name: parameter.detach() for name, parameter in parameters}}
        for name, parameter in parameters:
            for key, moment in self.trainer.engine.moments(parameter).items():
                kinds.setdefault(key, {})[name] = moment
        tensors = {name: whole(t) for name, t in self.state.to_save().items() if name.startswith("spectral/")}
        for kind, shards in sorted(kinds.items()):  # the same order on all ranks, whichever parameter comes first
            gathered = gather_whole(self.trainer, shards, self.topology)
            tensors |= {f"{kind}/{name}": tensor for name, tensor in gathered.items()}
        return tensors


def whole(tensor: Tensor) -> Tensor:
    return (tensor.full_tensor() if isinstance(tensor, DTensor) else tensor).clone()


def through(cfg: Config, folder: Path) -> Went:
    """Save after `AT` steps and train on without a stop; the tensors are those of the end."""
    rank = Rank(cfg)
    rank.train(0, AT)
    rank.save(folder)
    record = rank.train(AT, 2 * AT)
    return Went(rank.tensors(), record)


def resumed(cfg: Config, folder: Path) -> Went:
    """Load what `through` saved and train on; the tensors are those of the end."""
    rank = Rank(cfg)
    rank.load(folder)
    record = rank.train(AT, 2 * AT)
    return Went(rank.tensors(), record)


def save_and_go_on(cfg: Config, folder: Path) -> Went:
    """Save after `AT` steps and train on; the tensors are those of the checkpoint."""
    rank = Rank(cfg)
    rank.train(0, AT)
    rank.save(folder)
    return Went(rank.tensors(), rank.train(AT, AT + LONGER))


def go_on_from_each(cfg: Config, folders: list[Path]) -> list[Went]:
    """From one checkpoint after the other in the same process: each replaces all that the one before left."""
    rank = Rank(cfg)
    results = []
    for folder in folders:
        rank.load(folder)
        results.append(Went(rank.tensors(), rank.train(AT, AT + LONGER)))
    return results


def merged(ranks: list[Went]) -> Went:
    """All ranks' tensors, which are equal wherever two ranks have the same one, and the record, which all share."""
    tensors: dict[str, Tensor] = {}
    for rank in ranks:
        assert rank.record == ranks[0].record
        for name, tensor in rank.tensors.items():
            assert torch.equal(tensors.setdefault(name, tensor), tensor), f"{name} differs between ranks"
    return Went(tensors, ranks[0].record)


def assert_equal(actual: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert actual.keys() == expected.keys()
    assert any(name.startswith("spectral/") for name in expected)
    for name, tensor in expected.items():
        assert torch.equal(actual[name], tensor), name


def layout_config(name: str, **training: object) -> Config:
    world_size, parallel, own = LAYOUTS[name]
    return config(world_size, model=MODEL, parallel=parallel, training=own | training)


@pytest.mark.parametrize("precision", ["fp32", pytest.param("bf16", marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", [name for name in LAYOUTS if name not in ("tp4", "pp2 dp2", "dp4 ZeRO-2 one by one")])
def test_resume_is_bit_equal(name: str, precision: str, tmp_path: Path) -> None:
    world_size, cfg = LAYOUTS[name][0], layout_config(name, precision=precision)
    expected = merged(spawn(world_size, through, cfg, tmp_path))
    actual = merged(spawn(world_size, resumed, cfg, tmp_path))
    assert actual.record == expected.record
    assert_equal(actual.tensors, expected.tensors)


Source = Callable[[str], tuple[Path, Went]]


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Source:
    """By layout: a checkpoint's folder, its tensors and the unchanged run's next steps. Each is trained once."""

    @cache
    def train(name: str) -> tuple[Path, Went]:
        folder = tmp_path_factory.mktemp("source")
        return folder, merged(spawn(LAYOUTS[name][0], save_and_go_on, layout_config(name), folder))

    return train


def pairs() -> list[Any]:
    """Every layout from every layout: two sources of every eighth target at once, the others when there is time."""
    cases = []
    for index, target in enumerate(LAYOUTS):
        ring = [*LAYOUTS][index:] + [*LAYOUTS][:index]
        some = [ring[3], ring[6]]
        marks = () if index % 8 == 0 else pytest.mark.slow
        cases.append(pytest.param(target, some, id=f"{target} from {' and '.join(some)}", marks=marks))
        others = [name for name in ring if name not in some]
        cases.append(pytest.param(target, others, id=f"{target} from all others", marks=pytest.mark.slow))
    return cases


@pytest.mark.parametrize(("target", "names"), pairs())
def test_a_layout_goes_on_from_another(target: str, names: list[str], source: Source) -> None:
    """Every tensor of each checkpoint exactly, then the unchanged run's losses.

    The target starts from another seed's weights, so that nothing is right unless it was loaded.
    """
    made = [source(name) for name in names]
    ranks = spawn(LAYOUTS[target][0], go_on_from_each, layout_config(target, seed=1), [folder for folder, _ in made])
    for name, (_, expected), results in zip(names, made, zip(*ranks, strict=True), strict=True):
        actual = merged(list(results))
        assert_equal(actual.tensors, expected.tensors)
        if name == target:
            assert actual.record == expected.record
        for (loss, norm), (expected_loss, expected_norm) in zip(actual.record, expected.record, strict=True):
            assert loss == pytest.approx(expected_loss, rel=LOSS_NOISE), name
            assert norm == pytest.approx(expected_norm, rel=NORM_NOISE), name


def test_deepspeed_still_has_the_private_function_we_call() -> None:
    from deepspeed.runtime.zero.stage_1_and_2 import DeepSpeedZeroOptimizer

    assert callable(DeepSpeedZeroOptimizer._lazy_init_hp_params_optimizer_state)
