"""Residual scalings against their formulas, on whole decoder layers."""

import pytest
import torch

from configs.schema import ModelConfig
from model.decoder import DecoderLayer
from model.residual import LearnedResidual, build_residual
from parallel.linear import LinearSpec
from parallel.topology import TensorParallel

X_BTD, Y_BTD = (torch.randn(2, 3, 32, generator=torch.Generator().manual_seed(seed)) for seed in (0, 1))


def model(kind: str, **fields: object) -> ModelConfig:
    return ModelConfig.model_validate({"hidden_size": 32, "layers": 6, "residual": {"kind": kind}} | fields)


@pytest.mark.parametrize(
    ("kind", "stream", "branch"),
    [("plain", 1, 1), ("depth", 1, 6**-0.5), ("deepnorm", 12**0.25, 1), ("layerscale", 1, 0.1), ("rezero", 1, 0)],
)
def test_stream_and_branch_at_the_start(kind: str, stream: float, branch: float) -> None:
    joined_BTD = build_residual(model(kind), TensorParallel())(X_BTD, Y_BTD)
    torch.testing.assert_close(joined_BTD, stream * X_BTD + branch * Y_BTD, rtol=1e-6, atol=1e-6)


def test_a_plain_residual_is_the_sum_to_the_bit() -> None:
    assert torch.equal(build_residual(model("plain"), TensorParallel())(X_BTD, Y_BTD), X_BTD + Y_BTD)


@pytest.mark.parametrize(("layers", "start"), [(18, 0.1), (19, 1e-5), (24, 1e-5), (25, 1e-6)])
def test_layerscale_starts_lower_in_deeper_models(layers: int, start: float) -> None:
    residual = build_residual(model("layerscale", layers=layers), TensorParallel())
    assert isinstance(residual, LearnedResidual)
    assert torch.equal(residual.scale, torch.full((32,), start))


def test_layerscale_starts_where_it_is_told() -> None:
    config = model("layerscale", residual={"kind": "layerscale", "layerscale_init": 0.25})
    residual = build_residual(config, TensorParallel())
    assert isinstance(residual, LearnedResidual)
    assert torch.equal(residual.scale, torch.full((32,), 0.25))


def test_every_feature_has_a_scale_of_its_own_and_rezero_one_for_all() -> None:
    vector, scalar = (build_residual(model(kind), TensorParallel()) for kind in ("layerscale", "rezero"))
    assert isinstance(vector, LearnedResidual) and isinstance(scalar, LearnedResidual)
    assert scalar.scale.shape == (1,)
    with torch.no_grad():
        vector.scale.copy_(torch.arange(32.0))
        scalar.scale.fill_(3.0)
    torch.testing.assert_close(vector(X_BTD, Y_BTD), X_BTD + torch.arange(32.0) * Y_BTD)
    torch.testing.assert_close(scalar(X_BTD, Y_BTD), X_BTD + 3 * Y_BTD)


def test_a_rezero_layer_starts_as_the_identity() -> None:
    layer = DecoderLayer("layers.0", model("rezero", norm="none"), 3, LinearSpec(TensorParallel(), seed=0))
    assert torch.equal(layer(X_BTD), X_BTD)


def test_a_small_scale_in_bf16_is_not_rounded_away_before_the_sum() -> None:
    """1 + 0.99 * 2^-8 rounds up to 1 + 2^-7 only if product and sum are not rounded apart."""
    residual = LearnedResidual(1, 0.99, TensorParallel())
    joined = residual(torch.ones(1, dtype=torch.bfloat16), torch.tensor([2**-8 * 1.015625], dtype=torch.bfloat16))
    assert joined.dtype == torch.bfloat16
    assert joined.item() == 1 + 2**-7
