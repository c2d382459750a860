"""A decoder from a checkpoint: the function that was trained, in any layout and reparametrisation; what is refused."""

from pathlib import Path

import pytest
import torch

from configs.errors import CheckpointError, ConfigError
from configs.schema import Config
from exchange.origin import tokenizer_of
from exchange.plain import open_run
from inference.evaluate import evaluate
from inference.load import load_decoder, place
from inference.tokens import TextBytes, samples_of
from monitoring.recorder import read_metrics
from parallel import linear
from tests.inference.conftest import LLAMA, trained
from training.checkpoint import store

OWN_SAMPLES = 48
"""40, in whole global batches of 16."""


def own_loss(cfg: Config, step: int, dtype: str | None = None) -> float:
    """What the run itself measured at `step`, from its checkpoint."""
    weights = open_run(cfg.run_dir, step)
    tokenizer = tokenizer_of(weights, None)
    decoder = load_decoder(weights, tokenizer.vocab_size, place(weights.config, "cpu", dtype))
    samples = samples_of(weights, "validation")
    return evaluate(decoder, samples, OWN_SAMPLES, TextBytes.of(tokenizer), batch_size=7).loss


def logged(cfg: Config, step: int) -> float:
    return next(line["val_loss"] for line in read_metrics(cfg.run_dir) if line["step"] == step)


@pytest.mark.parametrize("run", ["llama_run", "learned_run"])
def test_the_loss_is_what_the_run_logged(run: str, request: pytest.FixtureRequest) -> None:
    cfg = request.getfixturevalue(run)
    assert logged(cfg, 3) != pytest.approx(logged(cfg, 6), rel=1e-3)
    for step in (3, 6):
        assert own_loss(cfg, step) == pytest.approx(logged(cfg, step), rel=1e-6)
    assert own_loss(cfg, 6, "bf16") == pytest.approx(logged(cfg, 6), rel=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize(
    "overrides",
    [
        [*LLAMA, "model.reparam.kind=none", "model.qk_norm=true", "training.precision=bf16"],
        [*LLAMA, "model.reparam.qkv=qk+v", "model.reparam.gate_up=fused", "training.precision=bf16"],
        [
            "model.norm_placement=peri",
            "model.attention_softcap=5",
            "model.logit_softcap=9",
            "model.residual.kind=rezero",
        ],
        ["model.norm_placement=post", "model.bias=true", "model.residual.kind=layerscale"],
        ["model.norm=none", "model.low_rank.targets=[q,k]", "model.embedding_norm=false"],
    ],
    ids=["none bf16", "fused bf16", "peri", "post", "low rank"],
)
def test_other_models_at_tp_2_pp_2(stdlib_bytes: Path, tmp_path: Path, overrides: list[str]) -> None:
    cfg = trained(stdlib_bytes, tmp_path, 4, "parallel.tp=2", "parallel.pp=2", *overrides)
    bound = 1e-6 if cfg.training.precision == "fp32" else 1e-4
    assert own_loss(cfg, 6) == pytest.approx(logged(cfg, 6), rel=bound)


def test_no_weights_are_drawn_and_all_are_filled(llama_run: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    def draw(*_: object) -> None:
        raise AssertionError("weights that are read are not drawn")

    monkeypatch.setattr(linear, "truncated_normal", draw)
    empty = torch.empty
    monkeypatch.setattr(torch, "empty", lambda *size, **options: empty(*size, **options).fill_(torch.nan))
    weights = open_run(llama_run.run_dir)
    decoder = load_decoder(weights, 257, place(weights.config, "cpu", "fp32"))
    assert all(parameter.isfinite().all() for parameter in decoder.parameters())
    assert decoder.head.weight.shape == (257, 32)  # no padding


def test_what_is_refused(llama_run: Config, tmp_path: Path) -> None:
    weights = open_run(llama_run.run_dir)
    where = place(weights.config, "cpu", None)
    with pytest.raises(CheckpointError, match=r"embedding.weight has 320 rows: not of a tokenizer with 1000 tokens"):
        load_decoder(weights, 1000, where)
    with pytest.raises(ConfigError, match=r"^command line: --dtype = fp8: must be fp32 or bf16$"):
        place(weights.config, "cpu", "fp8")
    with pytest.raises(ConfigError, match=r"^command line: --device = tpu: must be auto, cpu or cuda$"):
        place(weights.config, "tpu", None)


def test_data_prepared_anew_are_refused(llama_run: Config, stdlib_bytes: Path, tmp_path: Path) -> None:
    from data.prepare import prepare

    prepare(
        ["stdlib"],
        tmp_path / "other",
        tokenizer="byte",
        max_bytes=1_000_000,
        validation_fraction=0.3,
        workers=1,
        progress=False,
    )
    weights = open_run(store.steps(llama_run.run_dir / store.FOLDER)[0])
    weights.config.data.sources[0] = weights.config.data.sources[0].model_copy(update={"path": tmp_path / "other"})
    with pytest.raises(ConfigError, match=r"other: not the data that .* was trained on: prepared anew since"):
        tokenizer_of(weights, None)
