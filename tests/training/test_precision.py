"""bf16 against the dense fp32 run, and in parallel against one process."""

import pytest
import torch

from tests.distributed import spawn
from tests.layouts import config, dense_batches, dense_decoder, train_layout
from tests.reference import train_dense

# A bf16 number has 8 bits: one rounding is 2^-9 = 2e-3. A loss averages 128 tokens, a gradient norm sums thousands of
# entries, so independent roundings average out: 3e-3 of the loss and 3e-2 of the norm are what is left after 10 steps.
LOSS, NORM = 3e-3, 3e-2
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
    torch.testing.assert_close(actual.losses, expected.losses, rtol=LOSS, atol=0)
    torch.testing.assert_close(actual.grad_norms, expected.grad_norms, rtol=NORM, atol=0)
    assert actual.losses != expected.losses  # it did compute in bf16
