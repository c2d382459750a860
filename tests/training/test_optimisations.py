"""Loss and gradients with what makes a step faster or smaller equal those without it.

Recomputation and reading ahead change no bit. A compiled layer adds up in another order: as far from the plain one as
that is from the dense reference, 1e-5 of each gradient's norm.
"""

from functools import partial
from pathlib import Path
from unittest.mock import patch

import pytest
import torch

from configs.schema import Config
from tests.distributed import spawn
from tests.layouts import config, train_layout
from tests.reference import Trace
from tests.training.checkpoint.test_bit_equal import compare
from tests.training.test_dense_reference import assert_equal

STEPS = 2
LLAMA = {"norm": "rmsnorm", "positions": "rope", "activation": "swiglu", "kv_heads": 2, "qk_norm": True}
SIGMA = {"reparam": {"kind": "sigma"}}
BOTH = {"tp": 2, "pp": 2}
ONE = (1, SIGMA | LLAMA, {})
TP2_PP2 = (4, SIGMA | LLAMA, BOTH | {"sequence_parallel": True})
COMPILED = {
    "one process": ONE,
    "tp2 pp2": (4, SIGMA, BOTH),
    "tp2 pp2, sequence parallel": TP2_PP2,
    "tp2 pp2, interleaved": (4, LLAMA, BOTH | {"schedule": "interleaved_1f1b"}),
}


def settings(layout: tuple, *, prefetch: int = 0, **training: object) -> Config:
    world_size, model, parallel = layout
    data = {"sources": [{"path": "unused"}], "prefetch": prefetch}
    return config(world_size, data=data, model=model, parallel=parallel, training=training)


def trained(cfg: Config) -> Trace:
    return spawn(cfg.parallel.tp * cfg.parallel.pp, train_layout, cfg, STEPS)[0]


def assert_same_bits(actual: Trace, expected: Trace) -> None:
    assert (actual.losses, actual.grad_norms) == (expected.losses, expected.grad_norms)
    for ours, theirs in zip(actual.gradients, expected.gradients, strict=True):
        assert ours.keys() == theirs.keys()
        for name, gradient in theirs.items():
            assert torch.equal(ours[name], gradient), name


@pytest.mark.parametrize(
    "layout",
    [
        pytest.param(ONE, id="one process"),
        pytest.param(TP2_PP2, id="tp2 pp2, sequence parallel", marks=pytest.mark.slow),
    ],
)
def test_recompute_and_prefetch_change_no_bit(layout: tuple) -> None:
    plain = trained(settings(layout, micro_batch_size=2))
    for kind in ("selective", "full"):
        assert_same_bits(trained(settings(layout, micro_batch_size=2, recompute=kind, prefetch=2)), plain)


@pytest.mark.parametrize("recompute", ["none", "selective"])
def test_layers_as_the_compiler_sees_them_have_one_graph(recompute: str) -> None:
    """Traced and differentiated as for a compiled run, and then run as they are: no C++ compiler is asked."""
    cfg = settings(ONE, compile=True, recompute=recompute)
    ((trace, counters),) = spawn(1, traced, cfg)
    assert counters["stats"]["unique_graphs"] == 1 and not counters.get("graph_break")
    assert_equal(trace, trained(settings(ONE)), rtol=1e-5)


def traced(cfg: Config) -> tuple[Trace | None, dict]:
    from torch._dynamo.utils import counters

    with patch("torch.compile", partial(torch.compile, backend="aot_eager")):
        trace = train_layout(cfg, STEPS)
    return trace, {name: dict(counts) for name, counts in counters.items()}


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("recompute", ["none", "selective", "full"])
@pytest.mark.parametrize("name", COMPILED)
def test_compiled_layers_train_as_plain_ones(name: str, recompute: str) -> None:
    layout = COMPILED[name]
    compiled = trained(settings(layout, compile=True, recompute=recompute, prefetch=2))
    assert_equal(compiled, trained(settings(layout)), rtol=1e-5)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_compiled_run_resumes_bit_equally(stdlib_bytes: Path, tmp_path: Path) -> None:
    """Measured steps run uncompiled: the stop is at one, since a run's last step is always measured."""
    shared = ["checkpoint.interval=4", "monitoring.interval=4", "training.eval_samples=16"]
    changes = ["training.compile=true", "training.recompute=selective", "monitoring.zoom_steps=0"]
    compare(stdlib_bytes, tmp_path, 1, [*shared, *changes], 4, 10)
