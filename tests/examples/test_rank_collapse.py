"""Rank collapse: the recursion, the model it is about, the decoder at initialisation, and a training."""

from pathlib import Path

import numpy as np
import pytest

from examples.rank_collapse.collapse import CONFIG, unigram_loss
from examples.rank_collapse.depth import decoder_cosines, model_config
from examples.rank_collapse.theory import expected_cosines, measured_cosines, token_cosine
from examples.training import train
from monitoring.recorder import read_signals, read_summary
from parallel.seeds import truncated_normal

SEEDS = 40


@pytest.mark.parametrize(
    ("alpha", "layers", "expected"), [(1.0, 16, 0.999), (0.25, 16, 0.025), (1.0, 64, 1.0), (0.125, 64, 0.026)]
)
def test_the_recursion_gives_what_was_derived(alpha: float, layers: int, expected: float) -> None:
    assert expected_cosines(alpha, layers)[-1] == pytest.approx(expected, abs=5e-4)


@pytest.mark.parametrize("layers", [4, 16, pytest.param(64, marks=pytest.mark.slow)])
@pytest.mark.parametrize("scaled", [False, True], ids=["plain", "1/sqrt(L)"])
def test_measured_cosines_follow_the_recursion(layers: int, scaled: bool) -> None:
    """Within 10 %: the mean over these seeds has a standard error of about 4 % of the smallest cosines."""
    alpha = layers**-0.5 if scaled else 1.0
    measured = np.mean([measured_cosines(alpha, layers, seed)[-1] for seed in range(SEEDS)])
    assert measured == pytest.approx(expected_cosines(alpha, layers)[-1], rel=0.1)


def test_the_cosine_is_that_of_all_pairs() -> None:
    x_BTD = truncated_normal((2, 5, 3), 1.0, seed=0).double()
    pairs = [x[i] @ x[j] / x[i].norm() / x[j].norm() for x in x_BTD for i in range(5) for j in range(5) if i != j]
    assert token_cosine(x_BTD) == pytest.approx(float(sum(pairs) / len(pairs)), rel=1e-5)


def test_depth_scaling_keeps_the_tokens_of_a_deep_decoder_apart() -> None:
    plain, scaled = (decoder_cosines(model_config("post-LN", s, 16), 0) for s in ("plain", "1/sqrt(L)"))
    assert plain.shape == (16,)
    assert plain[-1] > 0.95 and scaled[-1] < 0.2


@pytest.mark.slow
def test_post_ln_training_collapses_to_one_token_with_attention_at_its_maximum(
    stdlib_bytes: Path, tmp_path: Path
) -> None:
    run_dir = train(CONFIG, stdlib_bytes, tmp_path / "run", "training.steps=60")
    _, cosine_SL = read_signals(run_dir, "token_cosine")
    _, entropy_SLA = read_signals(run_dir, "entropy_ratio")
    _, ratio_SL = read_signals(run_dir, "qk_grad_ratio")
    summary = read_summary(run_dir)
    assert cosine_SL[0].max() < 0.1 and cosine_SL[-1, 1:].min() > 0.99
    assert entropy_SLA[-1, -1].min() > 0.99
    assert ratio_SL[-1, -1] < 1e-3
    assert summary is not None and summary["val_loss"] > unigram_loss(stdlib_bytes) - 0.05
