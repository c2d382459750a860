"""Every recipe in parallel equals the dense reference: loss, every gradient, the norm and the weights in the end."""

import pytest

from configs.schema import Config
from parallel import topology as topologies
from tests.distributed import spawn
from tests.layouts import VOCAB, config, dense_batches, dense_decoder, train_layout
from tests.recipes import RECIPES, recipe
from tests.reference_training import train_dense
from tests.training.test_dense_reference import assert_equal
from tests.training.test_precision import assert_within_rounding
from training.build import build_trainer

STEPS = 5
TP2_PP2 = {"tp": 2, "pp": 2}
QUICK = ("deepnorm", "olmo2", "peri-ln-sigma-reparam")
"""Between them: three placements, scaled streams, Xavier, QK-norm, z-loss, and sigmaReparam beside a new norm."""

BIASED = {"bias": True, "norm": "layernorm"}
CAPS = {"attention_softcap": 0.02, "logit_softcap": 0.1}
"""About the size of the logits of so small a model, so that tanh bends them."""
CAPS_OF_NORMED = {"attention_softcap": 2, "logit_softcap": 0.1}
"""The same where queries and keys are normalised."""
LLAMA = {"norm": "rmsnorm", "positions": "rope", "activation": "swiglu", "kv_heads": 2, "qk_norm": True}
SEQUENCE = {"tp": 2, "sequence_parallel": True}

COMBINATIONS = {
    "tp2 pp2, sequence parallel: peri, LayerScale, normed and scaled embeddings, caps, z-loss": (
        4,
        BIASED
        | CAPS
        | {"norm_placement": "peri", "residual": {"kind": "layerscale"}}
        | {"embedding_norm": True, "embedding_scale": "sqrt_width"},
        SEQUENCE | {"pp": 2},
        {"z_loss": 1e-2},
    ),
    "tp2, sequence parallel, recompute: peri, ReZero": (
        2,
        LLAMA | {"norm_placement": "peri", "residual": {"kind": "rezero"}},
        SEQUENCE,
        {"recompute": "full"},
    ),
    "tp2 dp2 ZeRO-2, sequence parallel, micro-batches: reordered, LayerScale, caps, z-loss": (
        4,
        LLAMA | CAPS_OF_NORMED | {"norm_placement": "reordered", "residual": {"kind": "layerscale"}},
        SEQUENCE | {"zero_stage": 2},
        {"micro_batch_size": 2, "z_loss": 1e-2},
    ),
    "tp2 pp2 zbv: DeepNorm, Xavier, SwiGLU, biases, normed embeddings, caps, z-loss": (
        4,
        LLAMA
        | CAPS_OF_NORMED
        | {"bias": True, "norm_placement": "post", "residual": {"kind": "deepnorm"}, "init": "xavier"}
        | {"embedding_norm": True},
        TP2_PP2 | {"schedule": "zbv"},
        {"z_loss": 1e-2},
    ),
    "pp2 dp2 ZeRO-1, recompute: ReZero without norms": (
        4,
        {"norm": "none", "residual": {"kind": "rezero"}},
        {"pp": 2},
        {"recompute": "full"},
    ),
    "one process: tied head, scaled embeddings, caps, z-loss, label smoothing": (
        1,
        {"tie_embeddings": True, "embedding_scale": "sqrt_width"} | CAPS,
        {},
        {"z_loss": 1e-2, "label_smoothing": 0.1},
    ),
}


def slow_unless(quick: object, names: object) -> list:
    return [pytest.param(name, marks=[] if name in quick else pytest.mark.slow) for name in names]  # type: ignore[operator, attr-defined]


@pytest.mark.parametrize("name", slow_unless(QUICK, RECIPES))
def test_a_recipe_equals_the_dense_run(name: str) -> None:
    sections = recipe(name)
    compare(config(4, **sections | {"parallel": TP2_PP2}), config(1, **sections))


@pytest.mark.parametrize("name", slow_unless(list(COMBINATIONS)[:1], COMBINATIONS))
def test_stabilisers_together_equal_the_dense_run(name: str) -> None:
    world_size, model, parallel, training = COMBINATIONS[name]
    loss = {key: value for key, value in training.items() if key in ("z_loss", "label_smoothing")}
    cfg = config(world_size, model=model, parallel=parallel, training=training)
    compare(cfg, config(1, model=model, training=loss))


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in COMBINATIONS if "LayerScale" in name])
def test_stabilisers_together_in_bf16(name: str) -> None:
    """Within bf16's rounding of the dense fp32 run.

    The other combinations have gradients that are mostly cancellation: of weights in a ReZero branch and of DeepNorm's
    scales of queries 3.1 % and 8 % was rounding.
    """
    world_size, model, parallel, training = COMBINATIONS[name]
    dense = config(1, model=model, training={"z_loss": training.get("z_loss", 0.0)})
    cfg = config(world_size, model=model, parallel=parallel, training=training | {"precision": "bf16"})
    expected = train_dense(dense_decoder(dense), dense_batches(dense, STEPS))
    assert_within_rounding(spawn(world_size, train_layout, cfg, STEPS)[0], expected)


def test_the_validation_loss_is_without_z_loss() -> None:
    cfg = config(2, parallel={"tp": 2}, training={"z_loss": 0.1})
    (tokens_BT, targets_BT), model = dense_batches(cfg, 1)[0], dense_decoder(config(1))
    logits_BTV = model.logits(tokens_BT).detach().double()
    log_z_BT = logits_BTV.exp().sum(-1).log()
    cross_entropy = (log_z_BT - logits_BTV.gather(-1, targets_BT[..., None])[..., 0]).mean().item()
    ((train, validation), _) = spawn(2, both_losses, cfg)
    assert validation == pytest.approx(cross_entropy, rel=1e-6)
    assert train == pytest.approx(cross_entropy + 0.1 * log_z_BT.square().mean().item(), rel=1e-6)


def both_losses(cfg: Config) -> tuple[float, float]:
    """Of the first batch, on one rank: as in training, as in an evaluation."""
    topology = topologies.start(cfg.parallel, "cpu")
    pipeline = build_trainer(cfg, topology, VOCAB).pipeline
    (batch,) = dense_batches(cfg, 1)
    return pipeline.train(*batch).item(), pipeline.evaluate(*batch).item()


def compare(cfg: Config, dense: Config) -> None:
    expected = train_dense(dense_decoder(dense), dense_batches(dense, STEPS))
    actual = spawn(cfg.parallel.tp * cfg.parallel.pp * (cfg.parallel.dp or 1), train_layout, cfg, STEPS)[0]
    assert_equal(actual, expected, rtol=1e-5)
