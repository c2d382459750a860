"""Cuts against transformers' logits processors; draws against their distribution; what is refused.

Shapes: B sequences, V tokens.
"""

import pytest
import torch
from scipy.stats import chisquare
from torch import Tensor

from configs.errors import ConfigError
from inference.sampling import Sampler, keep_top_k, keep_top_p

V, DRAWS = 12, 6_000


def logits(rows: int = 1, size: int = V) -> Tensor:
    return 2 * torch.randn(rows, size, generator=torch.Generator().manual_seed(0))


def theirs(sampler: Sampler, logits_BV: Tensor) -> Tensor:
    from transformers import TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

    steps = [TemperatureLogitsWarper(sampler.temperature)]
    steps += [TopKLogitsWarper(sampler.top_k)] if sampler.top_k else []
    steps += [TopPLogitsWarper(sampler.top_p)] if sampler.top_p else []
    for step in steps:
        logits_BV = step(None, logits_BV)
    return logits_BV.softmax(-1)


@pytest.mark.parametrize(
    "sampler",
    [
        Sampler(),
        Sampler(0.3),
        Sampler(4.0),
        Sampler(top_k=1),
        Sampler(top_k=7),
        Sampler(top_p=0.5),
        Sampler(top_p=0.95),
        Sampler(top_p=1e-6),
        Sampler(0.7, top_k=50, top_p=0.8),
    ],
    ids=str,
)
def test_distributions_are_those_of_transformers(sampler: Sampler) -> None:
    logits_BV = logits(50, 300)
    torch.testing.assert_close(sampler.probabilities(logits_BV), theirs(sampler, logits_BV), rtol=1e-5, atol=1e-7)


def test_ties_with_the_kth_stay_and_the_nucleus_takes_the_first_of_equals() -> None:
    x = torch.tensor([[1.0, 3.0, 3.0, 2.0, 3.0]])
    assert keep_top_k(x, 2).isfinite().tolist() == [[False, True, True, False, True]]
    assert keep_top_k(x, 99).equal(x)
    assert keep_top_p(torch.zeros(1, 4), 0.5).isfinite().tolist() == [[True, True, False, False]]
    assert keep_top_p(x, 1.0).isfinite().all()


def test_a_tiny_temperature_is_greedy_not_nan() -> None:
    x_BV = 100 * logits(20)
    for temperature in (1e-30, 1e-40, 1e-320):  # the last ones fp32 cannot invert, or holds as 0
        assert Sampler(temperature).probabilities(x_BV).argmax(-1).equal(x_BV.argmax(-1))
        assert Sampler(temperature).probabilities(x_BV).sum(-1).allclose(torch.ones(20))


@pytest.mark.parametrize("sampler", [Sampler(0.7), Sampler(top_k=5), Sampler(0.8, top_p=0.7)], ids=str)
def test_draws_have_the_distribution(sampler: Sampler) -> None:
    """Chi-square at fixed seeds; and the test would notice another temperature."""
    logits_1V = logits() / 2
    drawn = sampler(logits_1V.expand(DRAWS, -1), [torch.Generator().manual_seed(3)] * DRAWS)
    counts_V = torch.bincount(drawn, minlength=V).double()
    other = Sampler(sampler.temperature * 1.5, sampler.top_k, sampler.top_p)
    assert _p_value(counts_V, sampler.probabilities(logits_1V)[0]) > 1e-3
    assert _p_value(counts_V, other.probabilities(logits_1V)[0]) < 1e-6


def _p_value(counts_V: Tensor, probabilities_V: Tensor) -> float:
    possible = probabilities_V > 0
    if counts_V[~possible].any():
        return 0.0
    expected = probabilities_V[possible].double()
    return chisquare(counts_V[possible].numpy(), (expected / expected.sum() * DRAWS).numpy()).pvalue


def test_greedy_takes_the_first_of_the_largest() -> None:
    assert Sampler(greedy=True)(torch.tensor([[1.0, 4.0, 4.0]]), []).tolist() == [1]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"temperature": 0.0}, "--temperature = 0: must be above 0; --greedy takes the most probable token"),
        ({"temperature": float("nan")}, "--temperature = nan: must be above 0; --greedy takes the most probable token"),
        ({"top_k": 0}, "--top-k = 0: must be at least 1"),
        ({"top_p": 1.5}, "--top-p = 1.5: must be above 0 and at most 1"),
    ],
)
def test_what_is_refused(options: dict, message: str) -> None:
    with pytest.raises(ConfigError) as error:
        Sampler(**options)
    assert str(error.value) == f"command line: {message}"
