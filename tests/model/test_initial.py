"""Initial weights of every projection of a layer: their spread, against the formulas."""

import pytest
import torch

from configs.schema import ModelConfig
from model.decoder import DecoderLayer
from parallel.linear import LinearSpec
from parallel.topology import TensorParallel

D, KV, F, LAYERS = 128, 64, 256, 6
SHAPES = {"q": (D, D), "k": (D, KV), "v": (D, KV), "output": (D, D), "gate": (D, F), "up": (D, F), "down": (F, D)}
NORMAL = dict.fromkeys(SHAPES, 0.02)
XAVIER = {name: (2 / sum(shape)) ** 0.5 for name, shape in SHAPES.items()}
DEPTH_SCALED = NORMAL | dict.fromkeys(("output", "down"), 0.02 / 12**0.5)
DEEPNORM = {name: std if name in "qk" else std / 48**0.25 for name, std in XAVIER.items()}


def spreads(**fields: object) -> dict[str, float]:
    sizes = {"hidden_size": D, "layers": LAYERS, "kv_heads": 2, "ffn_size": F, "activation": "swiglu"}
    config = ModelConfig.model_validate(sizes | fields)
    layer = DecoderLayer("layers.0", config, 8, LinearSpec(TensorParallel(), seed=0))
    q, k, v = layer.attention.qkv.weight.split([D, KV, KV])
    gate, up = layer.feedforward.gate_up.weight.split([F, F])
    output, down = layer.attention.output.weight, layer.feedforward.down.weight
    weights = {"q": q, "k": k, "v": v, "output": output, "gate": gate, "up": up, "down": down}
    return {name: weight.std().item() for name, weight in weights.items()}


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({}, NORMAL),
        ({"depth_scaled_init": True}, DEPTH_SCALED),
        ({"init": "xavier"}, XAVIER),
        ({"init": "xavier", "norm_placement": "post", "residual": {"kind": "deepnorm"}}, DEEPNORM),
    ],
    ids=["normal", "depth-scaled", "xavier", "deepnorm"],
)
def test_standard_deviation_of_every_projection(fields: dict, expected: dict[str, float]) -> None:
    """8,192 numbers at least: their spread is within 4 % (5 sigma of it) of the distribution's."""
    for name, spread in spreads(**fields).items():
        assert spread == pytest.approx(expected[name], rel=0.04), name


def test_blocks_that_are_stacked_have_the_weights_they_have_alone() -> None:
    """Their seeds are their names': another spread of one changes no other."""
    spec = LinearSpec(TensorParallel(), seed=0)
    plain, xavier = (
        DecoderLayer("layers.0", ModelConfig.model_validate({"init": init}), 8, spec).attention.qkv.weight
        for init in ("normal", "xavier")
    )
    torch.testing.assert_close(xavier / plain, torch.full_like(plain, (2 / 128) ** 0.5 / 0.02), rtol=1e-4, atol=0)
