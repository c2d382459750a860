"""bf16, in parallel, against the dense fp32 run."""

import pytest
import torch

from tests.distributed import spawn
from tests.layouts import config, dense_batches, dense_decoder, train_layout
from tests.reference import Trace
from tests.reference_training import train_dense
from tests.training.test_dense_reference import cancellation

# One rounding to bf16's 8 bits is 2^-9 = 2e-3; a gradient has gone through a few dozen: 2e-2 of its norm
# was seen at most. A loss averages 128 tokens and a norm sums thousands of entries: 2e-4 and 2e-3 were seen.
LOSS, NORM, GRADIENT = 1e-3, 5e-3, 3e-2
LAYOUTS = {
    "one process": (1, {}),
    "tp2 sequence parallel": (2, {"tp": 2, "sequence_parallel": True}),
    "pp2 zbv": (2, {"pp": 2, "schedule": "zbv"}),
    "tp2 pp2": (4, {"tp": 2, "pp": 2}),
    "pp2 dp2 ZeRO-2": (4, {"pp": 2, "zero_stage": 2}),
}


@pytest.mark.parametrize("kind", ["none", "sigma"])
@pytest.mark.parametrize("name", LAYOUTS)
def test_bf16_stays_within_its_rounding_of_the_dense_fp32_run(name: str, kind: str) -> None:
    world_size, parallel = LAYOUTS[name]
    model = {"reparam": {"kind": kind}}
    cfg = config(world_size, model=model, parallel=parallel, training={"precision": "bf16"})
    dense = config(1, model=model)
    expected = train_dense(dense_decoder(dense), dense_batches(dense, 10))
    actual = spawn(world_size, train_layout, cfg, 10)[0]
    assert_within_rounding(actual, expected)


def assert_within_rounding(actual: Trace, expected: Trace) -> None:
    assert actual.losses != expected.losses  # it did compute in bf16
    torch.testing.assert_close(actual.losses, expected.losses, rtol=LOSS, atol=0)
    torch.testing.assert_close(actual.grad_norms, expected.grad_norms, rtol=NORM, atol=0)
    for step, gradients in enumerate(expected.gradients):
        for parameter, gradient in gradients.items():
            error = (actual.gradients[step][parameter] - gradient).norm()
            allowed = GRADIENT * (gradient.norm() + cancellation(parameter, expected, step))
            assert error <= allowed, f"step {step}, {parameter}: error {error:.1e} of {gradient.norm():.1e}"
