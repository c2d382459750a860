"""Training state through a file and back: bit-equal in the same layout, equal tensors in every other."""

from pathlib import Path

import pytest
import torch
import torch.distributed.checkpoint as dcp
from torch import Tensor
from torch.distributed.checkpoint import HuggingFaceStorageReader, HuggingFaceStorageWriter
from torch.distributed.tensor import DTensor

from configs.schema import Config
from parallel import topology as topologies
from parallel.gradients import sum_partial_gradients
from parallel.topology import Topology
from tests.distributed import spawn
from tests.layouts import VOCAB, RandomSamples, config
from training.batches import Batches
from training.build import Trainer, build_trainer
from training.checkpoint.state import TrainingState
from training.reductions import mean_loss

LLAMA = {"norm": "rmsnorm", "positions": "rope", "activation": "swiglu", "kv_heads": 2, "qk_norm": True}
LAYOUTS = {
    "one process": (1, {}),
    "tp2": (2, {"tp": 2}),
    "pp2": (2, {"pp": 2}),
    "interleaved": (2, {"pp": 2, "schedule": "interleaved_1f1b"}),
    "tp2 pp2": (4, {"tp": 2, "pp": 2}),
    "tp2 dp2": (4, {"tp": 2}),
    "pp2 dp2 ZeRO-2": (4, {"pp": 2, "zero_stage": 2}),
}


def steps(cfg: Config, folder: Path, resume_at: int, until: int, save_at: int | None) -> list:
    """Train from step `resume_at` (loaded from `folder` unless 0) to `until`; save after `save_at`.

    Returns the exact losses and norms, and the final tensors whole.
    """
    topology = topologies.start(cfg.parallel, "cpu")
    trainer = build_trainer(cfg, topology, VOCAB)
    state = TrainingState(trainer, topology)
    if resume_at:
        dcp.load(state.to_load(), storage_reader=HuggingFaceStorageReader(str(folder)))
        state.loaded(resume_at)
    batches = Batches(RandomSamples(16), cfg.training.global_batch_size, topology)
    record = []
    for step in range(resume_at, until):
        record.append(train_step(trainer, batches, step, topology, cfg))
        if step + 1 == save_at:
            dcp.save(state.to_save(), storage_writer=HuggingFaceStorageWriter(str(folder), save_distributed=True))
    return [record, {name: whole(tensor) for name, tensor in state.to_save().items()}]


def train_step(trainer: Trainer, batches: Batches, step: int, topology: Topology, cfg: Config) -> tuple[float, float]:
    with trainer.engine.accumulate():
        loss = trainer.pipeline.train(*batches.step(step))
        sum_partial_gradients(trainer.parameters(), topology.tensor)
        trainer.spectral.pull_back()
    norm = trainer.engine.step(cfg.optimizer.lr)
    trainer.spectral.refresh()
    return mean_loss(loss, trainer.pipeline, topology), norm


def whole(tensor: Tensor) -> Tensor:
    return (tensor.full_tensor() if isinstance(tensor, DTensor) else tensor).clone()


def merged(results: list) -> dict[str, Tensor]:
    tensors: dict[str, Tensor] = {}
    for _, of_rank in results:
        tensors |= of_rank
    return tensors


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("name", LAYOUTS)
def test_resume_is_bit_equal(name: str, precision: str, tmp_path: Path) -> None:
    world_size, parallel = LAYOUTS[name]
    model = LLAMA | {"bias": True, "reparam": {"kind": "sigma"}}
    cfg = config(world_size, model=model, parallel=parallel, training={"precision": precision})
    through = spawn(world_size, steps, cfg, tmp_path, 0, 8, 4)
    resumed = spawn(world_size, steps, cfg, tmp_path, 4, 8, None)
    assert resumed[0][0] == through[0][0][4:]
    expected, actual = merged(through), merged(resumed)
    assert expected.keys() == actual.keys()
    for key, tensor in expected.items():
        assert torch.equal(actual[key], tensor), key


@pytest.mark.parametrize("target", LAYOUTS)
@pytest.mark.parametrize("source", ["tp2 pp2", "pp2 dp2 ZeRO-2"])
def test_another_layout_loads_every_tensor_exactly(source: str, target: str, tmp_path: Path) -> None:
    model = LLAMA | {"bias": True, "reparam": {"kind": "sigma"}}
    source_size, source_parallel = LAYOUTS[source]
    target_size, target_parallel = LAYOUTS[target]
    saved = merged(
        spawn(source_size, steps, config(source_size, model=model, parallel=source_parallel), tmp_path, 0, 4, 4)
    )
    cfg = config(target_size, model=model, parallel=target_parallel)
    loaded = merged(spawn(target_size, steps, cfg, tmp_path, 4, 4, None))
    assert saved.keys() == loaded.keys()
    for key, tensor in saved.items():
        assert torch.equal(loaded[key], tensor), key


def test_deepspeed_still_has_the_private_function_we_call() -> None:
    from deepspeed.runtime.zero.stage_1_and_2 import DeepSpeedZeroOptimizer

    assert callable(DeepSpeedZeroOptimizer._lazy_init_hp_params_optimizer_state)
