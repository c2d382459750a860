"""Steps of a budget, and the count of parameters behind it against the built model's own."""

from pathlib import Path

import pytest

from comparison.budget import matrix_parameters, steps_within
from comparison.study_file import Budget
from configs.errors import DataError
from configs.schema import Config, LowRankConfig, ModelConfig, OptimizerConfig, ReparamConfig
from model.decoder import Decoder
from parallel.linear import LinearSpec
from parallel.topology import TensorParallel

VOCABULARY = 257
MODELS = {
    "gelu": ModelConfig(),
    "swiglu, grouped queries": ModelConfig(heads=8, kv_heads=2, activation="swiglu", norm="rmsnorm", bias=True),
    "tied head": ModelConfig(tie_embeddings=True, positions="learned", ffn_size=96),
    "sigmaReparam": ModelConfig(reparam=ReparamConfig(kind="sigma"), qk_norm=True),
    "low rank": ModelConfig(low_rank=LowRankConfig(targets=("q", "v"), rank=24)),
    "low rank by head": ModelConfig(kv_heads=2, low_rank=LowRankConfig(targets=("q", "k", "v"), per_head=True)),
}


@pytest.mark.parametrize("model", MODELS.values(), ids=MODELS.keys())
def test_the_count_is_that_of_the_built_model(model: ModelConfig) -> None:
    decoder = Decoder(
        model,
        LinearSpec(TensorParallel(), seed=0, reparametrised=model.reparam.kind == "sigma", bias=model.bias),
        vocab_size=VOCABULARY,
        length=16,
        layers=range(model.layers),
    )
    tables = ("positions.weight",) if model.tie_embeddings else ("positions.weight", "embedding.weight")
    matrices = {name: p.numel() for name, p in decoder.named_parameters() if p.dim() > 1 and name not in tables}
    assert matrix_parameters(model, VOCABULARY) == sum(matrices.values())


def test_a_budget_in_flops(stdlib_bytes: Path) -> None:
    config = Config.model_validate({"data": {"sources": [{"path": str(stdlib_bytes)}]}})
    a_step = 6 * (4 * 12 * 64**2 + 320 * 64) * 16 * 64  # four layers of 12 d^2, and a head for 257 bytes padded to 320
    assert steps_within(Budget(flops=10.5 * a_step), config) == 10
    sam = config.model_copy(update={"optimizer": OptimizerConfig(sam_rho=0.05)})
    assert steps_within(Budget(flops=10.5 * a_step), sam) == 5  # two passes a step


def test_a_budget_in_flops_needs_the_vocabulary_of_its_data() -> None:
    config = Config.model_validate({"data": {"sources": [{"path": "nix"}]}})
    with pytest.raises(DataError, match="nix"):
        steps_within(Budget(flops=1e9), config)
