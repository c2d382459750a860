"""Stopped and resumed equals never stopped, bit for bit, through the real loop: lines, tensors, samples."""

from itertools import chain
from pathlib import Path
from unittest.mock import patch
from zlib import crc32

import pytest
import torch
from torch import Tensor

import training.run
from configs.schema import Config
from tests.distributed import spawn
from tests.recipes import RECIPES, overrides
from tests.training.checkpoint.test_saver import assert_same_bits, assert_same_lines
from tests.training.test_run import tiny
from training.batches import Batches
from training.journal import Summary

STOP, LAST = 20, 47
"""Steps until the stop, and in all: 20 after it, then 7 more, which take the next 112 samples."""

SHARED = ["checkpoint.interval=20", "monitoring.interval=10", "training.eval_interval=20", "training.eval_samples=16"]
LAYOUTS = {
    "one process": (1, []),
    "tp2 pp2": (4, ["parallel.tp=2", "parallel.pp=2"]),
    "pp2 dp2 ZeRO-1": (4, ["parallel.pp=2"]),
    "pp2 dp2 ZeRO-2": (4, ["parallel.pp=2", "parallel.zero_stage=2"]),
    "interleaved": (2, ["parallel.pp=2", "parallel.schedule=interleaved_1f1b"]),
    "accumulation and recompute": (1, ["training.micro_batch_size=4", "training.recompute=full"]),
    "tp2 dp2 accumulation and recompute": (
        4,
        ["parallel.tp=2", "training.micro_batch_size=4", "training.recompute=full"],
    ),
}
KINDS = {"sigmaReparam": [], "pre-LN": ["model.reparam.kind=none"]}
QUICK = [
    ("one process", "fp32", "sigmaReparam"),
    ("tp2 pp2", "bf16", "sigmaReparam"),
]
CASES = [
    pytest.param(*case, id=", ".join(case), marks=[] if case in QUICK else pytest.mark.slow)
    for case in [(name, precision, kind) for name in LAYOUTS for precision in ("fp32", "bf16") for kind in KINDS]
]
Sample = tuple[int, int]
"""Its number in the run, and a checksum of the tokens that were handed out."""


def trained(cfg: Config) -> tuple[Summary, list[Sample]]:
    """The loop on one rank, and the training samples it was handed, in their order."""
    taken: list[Sample] = []

    class Watched(Batches):
        def step(self, step: int) -> tuple[Tensor, Tensor]:
            tokens_BT, targets_BT = super().step(step)
            first = step * self._global + self._first
            windows = torch.cat([tokens_BT, targets_BT[:, -1:]], dim=1).numpy()
            taken.extend((first + i, crc32(window.tobytes())) for i, window in enumerate(windows))
            return tokens_BT, targets_BT

    with patch.object(training.run, "Batches", Watched):
        return training.run.train(cfg), taken


@pytest.mark.parametrize(("name", "precision", "kind"), CASES)
def test_stopped_and_resumed_equals_never_stopped(
    stdlib_bytes: Path, tmp_path: Path, name: str, precision: str, kind: str
) -> None:
    world_size, layout = LAYOUTS[name]
    changes = [*SHARED, *layout, *KINDS[kind], f"training.precision={precision}"]
    compare(stdlib_bytes, tmp_path, world_size, changes, STOP, LAST)


@pytest.mark.slow
@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_resumes_bit_equally(stdlib_bytes: Path, tmp_path: Path, name: str) -> None:
    shared = ["checkpoint.interval=4", "monitoring.interval=2", "training.eval_samples=16", "training.precision=bf16"]
    compare(stdlib_bytes, tmp_path, 4, [*shared, *LAYOUTS["tp2 pp2"][1], *overrides(name)], 4, 10)


def compare(data: Path, folder: Path, world_size: int, changes: list[str], stop: int, last: int) -> None:
    """A run stopped after `stop` steps, which must be measured and saved in both, and resumed up to `last`."""
    through = tiny(data, folder / "through", world_size, *changes, f"training.steps={last}")
    first = tiny(data, folder / "stopped", world_size, *changes, f"training.steps={stop}")
    second = tiny(data, folder / "stopped", world_size, *changes, f"training.steps={last}")
    expected = spawn(world_size, trained, through)
    before = spawn(world_size, trained, first)
    after = spawn(world_size, trained, second)
    assert_same_summary(after[0][0], expected[0][0], last)
    assert_same_lines(second, through)
    assert_same_bits(second, through)
    size = through.training.global_batch_size
    assert_same_samples(before, after, expected, range(stop * size, last * size))


def assert_same_summary(actual: Summary, expected: Summary, last: int) -> None:
    assert actual.status == expected.status == "finished"
    assert (actual.val_loss, actual.initial_loss, actual.steps) == (expected.val_loss, expected.initial_loss, last)


def assert_same_samples(before: list, after: list, expected: list, resumed: range) -> None:
    """Each rank takes what it would have taken; together, every sample of the resumed part once in its step."""
    for (_, head), (_, tail), (_, uninterrupted) in zip(before, after, expected, strict=True):
        assert head + tail == uninterrupted
    numbers = {k for k, _ in chain.from_iterable(tail for _, tail in after)}
    assert sorted(numbers) == [*resumed]
