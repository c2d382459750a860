"""An ordinary step makes the host wait for the device once: where the step is judged."""

import traceback
from pathlib import Path
from unittest.mock import patch

import pytest
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

import training.run
from configs.schema import Config
from tests.distributed import spawn
from tests.training.test_run import tiny
from training.batches import Batches

REPOSITORY = Path(__file__).parents[2]
WAITS = {"tolist", "item", "cpu", "numpy", "nonzero", "__bool__", "__int__", "__float__", "__index__", "__array__"}
COPIES = {"tensor", "as_tensor"}
"""They bring numbers of the host to the device, and wait until they are there."""
PORTABLE = "parallel/boundary.py"
"""Reads factors where the host is the device; on a GPU a kernel does it all."""


class Reads(TorchFunctionMode):
    """Notes who of ours reads or copies."""

    def __init__(self) -> None:
        super().__init__()
        self.sites: list[str] = []

    def __torch_function__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        if getattr(func, "__name__", "") in WAITS | COPIES:
            self.sites.append(_site())
        return func(*args, **(kwargs or {}))


class ScalarReads(TorchDispatchMode):
    """Notes reads from inside torch, as a tensor in an index or a condition makes them."""

    def __init__(self, sites: list[str]) -> None:
        super().__init__()
        self.sites = sites

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        if func in (torch.ops.aten._local_scalar_dense.default, torch.ops.aten.nonzero.default):
            self.sites.append(_site())
        return func(*args, **(kwargs or {}))


def _site() -> str:
    ours = [Path(frame.filename) for frame in traceback.extract_stack() if frame.filename.startswith(str(REPOSITORY))]
    paths = [path.relative_to(REPOSITORY) for path in ours]
    return str([path for path in paths if path.parts[0] not in ("tests", ".venv")][-1])


def reads_of_steps(cfg: Config) -> list[list[str]]:
    """For each step but the first, who read from its beginning to that of the next, or to the end of the run."""
    outer, starts = Reads(), []

    class Watched(Batches):
        def step(self, step: int) -> tuple[Tensor, Tensor]:
            starts.append(len(outer.sites))
            return super().step(step)

    with patch.object(training.run, "Batches", Watched), outer, ScalarReads(outer.sites):
        training.run.train(cfg)
    return [outer.sites[a:b] for a, b in zip(starts[1:], [*starts[2:], None], strict=True)]


@pytest.mark.parametrize(
    ("world_size", "changes"),
    [
        (1, ["model.reparam.kind=none", "training.recompute=selective", "data.prefetch=2"]),
        (2, ["parallel.tp=2", "optimizer.name=muon", "stability.skip.enabled=true", "stability.zclip.enabled=true"]),
    ],
    ids=["one process, pre-LN", "tp2, sigmaReparam, Muon"],
)
def test_an_ordinary_step_reads_once(stdlib_bytes: Path, tmp_path: Path, world_size: int, changes: list[str]) -> None:
    ordinary = ["training.steps=5", "monitoring.interval=0", "training.eval_interval=0", "training.eval_samples=16"]
    cfg = tiny(stdlib_bytes, tmp_path, world_size, *ordinary, *changes)
    for steps in spawn(world_size, reads_of_steps, cfg):
        *before, last = [[site for site in step if site != PORTABLE] for step in steps]
        assert before == [["stability/guard.py"]] * 3
        assert len(last) > 1, "the evaluation at the end reads, and is counted"
