"""Moments of Muon and StableAdamW through a checkpoint: bit-equal in the same layout, equal tensors in every other."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

from configs.schema import Config
from tests.distributed import spawn
from tests.layouts import config
from tests.training.checkpoint.test_state import (
    LOSS_NOISE,
    MODEL,
    NORM_NOISE,
    assert_equal,
    go_on_from_each,
    merged,
    resumed,
    save_and_go_on,
    through,
)

LAYOUTS: dict[str, tuple[int, dict[str, Any]]] = {
    "tp1": (1, {}),
    "tp2": (2, {"tp": 2}),
    "dp2": (2, {"zero_stage": 1}),
    "pp2": (2, {"pp": 2}),
    "tp2 pp2": (4, {"tp": 2, "pp": 2}),
    "tp2 dp2 ZeRO-2": (4, {"tp": 2, "zero_stage": 2}),
}


def optimizer_config(name: str, layout: str, **training: object) -> Config:
    world_size, parallel = LAYOUTS[layout]
    return config(world_size, model=MODEL, parallel=parallel, training=training, optimizer={"name": name})


PAIRS = [
    ("tp1", "tp2 dp2 ZeRO-2"),
    ("tp2", "tp1"),
    ("tp2", "dp2"),
    ("tp2", "tp2 pp2"),
    ("dp2", "tp1"),
    ("dp2", "tp2"),
    ("tp2 dp2 ZeRO-2", "dp2"),
    ("tp2 dp2 ZeRO-2", "tp2 pp2"),
]


def cases(choices: Iterable[tuple[str, ...]], fast: tuple[str, ...]) -> list[Any]:
    """Each choice with each optimizer; one of them at once, the others when there is time."""
    every = [(name, *choice) for name in ("muon", "stable_adamw") for choice in choices]
    return [pytest.param(*case, marks=[] if case == fast else pytest.mark.slow) for case in every]


@pytest.mark.parametrize(("name", "layout"), cases([(name,) for name in LAYOUTS], ("muon", "dp2")))
def test_resume_is_bit_equal(name: str, layout: str, tmp_path: Path) -> None:
    world_size, cfg = LAYOUTS[layout][0], optimizer_config(name, layout)
    expected = merged(spawn(world_size, through, cfg, tmp_path))
    actual = merged(spawn(world_size, resumed, cfg, tmp_path))
    assert actual.record == expected.record
    assert any(key.startswith("momentum/layers.") for key in actual.tensors) == (name == "muon")
    assert_equal(actual.tensors, expected.tensors)


@pytest.mark.parametrize(("name", "source", "target"), cases(PAIRS, ("muon", "tp2", "dp2")))
def test_a_layout_goes_on_from_another(name: str, source: str, target: str, tmp_path: Path) -> None:
    expected = merged(spawn(LAYOUTS[source][0], save_and_go_on, optimizer_config(name, source), tmp_path))
    ranks = spawn(LAYOUTS[target][0], go_on_from_each, optimizer_config(name, target, seed=1), [tmp_path])
    actual = merged([results[0] for results in ranks])
    assert_equal(actual.tensors, expected.tensors)
    for (loss, norm), (expected_loss, expected_norm) in zip(actual.record, expected.record, strict=True):
        assert loss == pytest.approx(expected_loss, rel=LOSS_NOISE)
        assert norm == pytest.approx(expected_norm, rel=NORM_NOISE)
