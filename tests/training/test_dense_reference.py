"""Loss, every gradient and the gradient norm of every layout equal the dense run's, step by step."""

import pytest
import torch
from torch import Tensor

from tests.distributed import spawn
from tests.layouts import config, dense_batches, dense_decoder, train_layout
from tests.reference import Trace
from tests.reference_training import train_dense

STEPS = 10
SIGMA = {"reparam": {"kind": "sigma"}}
LLAMA = {"norm": "rmsnorm", "positions": "rope", "activation": "swiglu", "kv_heads": 2, "qk_norm": True}
ZBV = {"schedule": "zbv"}

LAYOUTS = {
    "one process": (1, {}, {}, {}),
    "one process, pre-LN": (1, {"reparam": {"kind": "none"}}, {}, {}),
    "one process, 4 micro-batches": (1, {}, {}, {"micro_batch_size": 2}),
    "one process, recompute": (1, {}, {}, {"recompute": "full"}),
    "one process, post-LN with biases": (1, {"norm_placement": "post", "bias": True}, {}, {}),
    "one process, tied head": (1, {"tie_embeddings": True, "reparam": {"kind": "sigma", "head": False}}, {}, {}),
    "tp2": (2, {}, {"tp": 2}, {}),
    "tp2, label smoothing": (2, {}, {"tp": 2}, {"label_smoothing": 0.1}),
    "tp2, pre-LN": (2, {"reparam": {"kind": "none"}}, {"tp": 2}, {}),
    "tp2, biases": (2, {"bias": True}, {"tp": 2}, {}),
    "tp2, llama": (2, LLAMA, {"tp": 2}, {}),
    "tp2, qkv as one matrix": (2, {"reparam": {"kind": "sigma", "qkv": "qkv"}}, {"tp": 2}, {}),
    "tp2, qk+v, fused gate and up": (
        2,
        LLAMA | {"reparam": {"kind": "sigma", "qkv": "qk+v", "gate_up": "fused"}},
        {"tp": 2},
        {},
    ),
    "tp2, sequence parallel": (2, {"bias": True}, {"tp": 2, "sequence_parallel": True}, {}),
    "tp2, sequence parallel, llama, recompute": (
        2,
        LLAMA,
        {"tp": 2, "sequence_parallel": True},
        {"recompute": "full"},
    ),
    "tp2, tied head, sequence parallel": (
        2,
        {"tie_embeddings": True, "reparam": {"kind": "sigma", "head": False}},
        {"tp": 2, "sequence_parallel": True},
        {},
    ),
    "tp4": (4, {}, {"tp": 4}, {}),
    "pp2 gpipe": (2, {}, {"pp": 2, "schedule": "gpipe"}, {}),
    "pp2 1f1b": (2, {}, {"pp": 2}, {}),
    "pp2 1f1b, recompute, 4 micro-batches": (2, {}, {"pp": 2}, {"recompute": "full", "micro_batch_size": 2}),
    "pp2 interleaved": (2, {}, {"pp": 2, "schedule": "interleaved_1f1b"}, {}),
    "pp2 interleaved zero bubble": (2, {}, {"pp": 2, "schedule": "interleaved_zero_bubble"}, {}),
    "pp2 zbv": (2, {}, {"pp": 2} | ZBV, {}),
    "pp2 zbv, llama": (2, LLAMA, {"pp": 2} | ZBV, {}),
    "tp2 pp2": (4, {}, {"tp": 2, "pp": 2}, {}),
    "tp2 pp2, sequence parallel, llama": (4, LLAMA, {"tp": 2, "pp": 2, "sequence_parallel": True}, {}),
    "tp2 pp2 zbv": (4, {}, {"tp": 2, "pp": 2} | ZBV, {}),
    "tp2 pp2 interleaved, 4 micro-batches": (
        4,
        {},
        {"tp": 2, "pp": 2, "schedule": "interleaved_1f1b"},
        {"micro_batch_size": 2},
    ),
    "dp2 ZeRO-1": (2, {}, {"zero_stage": 1}, {}),
    "dp2 ZeRO-2": (2, {}, {"zero_stage": 2}, {}),
    "tp2 dp2 ZeRO-1": (4, {}, {"tp": 2, "zero_stage": 1}, {}),
    "tp2 dp2 ZeRO-2": (4, {}, {"tp": 2, "zero_stage": 2}, {}),
    "pp2 dp2 ZeRO-1": (4, {}, {"pp": 2, "zero_stage": 1}, {"micro_batch_size": 2}),
    "pp2 dp2 ZeRO-2": (4, {}, {"pp": 2, "zero_stage": 2}, {"micro_batch_size": 2}),
    "tp2 pp2 dp2 zbv ZeRO-2": (8, LLAMA, {"tp": 2, "pp": 2, "zero_stage": 2} | ZBV, {"micro_batch_size": 1}),
}


@pytest.mark.parametrize("name", LAYOUTS)
def test_every_gradient_equals_the_dense_run(name: str) -> None:
    world_size, model, parallel, training = LAYOUTS[name]
    cfg = config(world_size, model=SIGMA | model, parallel=parallel, training=training)
    dense_cfg = config(1, model=SIGMA | model, training={"label_smoothing": cfg.training.label_smoothing})
    expected = train_dense(dense_decoder(dense_cfg), dense_batches(dense_cfg, STEPS))
    actual = spawn(world_size, train_layout, cfg, STEPS)[0]
    assert_equal(actual, expected, rtol=1e-5)


def assert_equal(actual: Trace, expected: Trace, rtol: float) -> None:
    """Losses, norms and each gradient to `rtol` (of its norm), and the parameters in the end.

    The reference clips by a norm over every parameter, so a wrong global norm shows in `grad_norms` before clipping
    and Adam can hide it.
    """
    torch.testing.assert_close(actual.losses, expected.losses, rtol=rtol, atol=0)
    torch.testing.assert_close(actual.grad_norms, expected.grad_norms, rtol=rtol, atol=0)
    for step, (ours, theirs) in enumerate(zip(actual.gradients, expected.gradients, strict=True)):
        assert ours.keys() == theirs.keys()
        for name, gradient in theirs.items():
            allowed = rtol * (gradient.norm() + cancellation(name, expected, step))
            error = (ours[name] - gradient).norm()
            assert error <= allowed, f"step {step}, {name}: error {error:.1e} of {gradient.norm():.1e}"
    for name, parameter in expected.parameters.items():
        error = (actual.parameters[name] - parameter).norm()
        allowed = rtol * max(parameter.norm(), largest_scalar(name, expected.parameters))
        assert error <= allowed, f"{name} after {len(expected.losses)} steps: {error:.1e} of {parameter.norm():.1e}"


def cancellation(name: str, trace: Trace, step: int) -> float:
    """How much larger than the gradient of a gamma, or of ReZero's scalar, the terms are that cancel in it.

    dL/dgamma = <dL/dW_hat, W> / sigma sums a whole matrix to a scalar up to 100 times smaller than the norms of its
    factors; fp32 rounds each term, so no order of summation gives the scalar to 1e-5 of itself. A tenth of the
    factors' size still tells a gradient that misses a rank or a micro-batch (wrong by its whole value) from a right
    one. The scalar of a ReZero branch sums over tokens and features, and its terms are about as large as those of the
    other branches, in one of which they cancel less.
    """
    if name.endswith("_residual.scale"):
        return largest_scalar(name, trace.gradients[step])
    if not name.endswith(".gamma"):
        return 0.0
    weight = name.removesuffix("gamma") + "weight"
    return 0.1 * float(trace.gradients[step][weight].norm() * trace.parameters[weight].norm())


def largest_scalar(name: str, tensors: dict[str, Tensor]) -> float:
    """The largest of a model's ReZero scalars, if `name` is one of them; else 0."""
    if not name.endswith("_residual.scale") or tensors[name].numel() > 1:
        return 0.0
    return max(float(tensor.abs()) for key, tensor in tensors.items() if key.endswith("_residual.scale"))
