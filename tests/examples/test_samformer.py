"""SAMformer: the model against its formula, its measurements against dense ones, and what training does."""

import pytest
import torch
from torch import nn

from examples.samformer.forecaster import QUERY_WIDTH, ReversibleNorm, Samformer
from examples.samformer.problem import CHANNELS, Size, Split, draw
from examples.samformer.trial import Method, Setting, Trainer, attention_entropy, mse, sharpness
from parallel.linear import LinearSpec
from parallel.topology import TensorParallel

SMALL = Size(length=6, horizon=3, train=256, val=64, test=64)


def model(*, norm: bool) -> Samformer:
    return Samformer(CHANNELS, SMALL.length, SMALL.horizon, LinearSpec(TensorParallel(), 1, bias=True), norm=norm)


def test_the_forecast_is_that_of_the_formula() -> None:
    made, x_BDL = model(norm=True), torch.randn(5, CHANNELS, 6, generator=torch.Generator().manual_seed(0)) * 3 + 2
    state = {name: p.detach() for name, p in made.named_parameters()}
    z = nn.functional.instance_norm(x_BDL)
    w_q, w_k, w_v = state["qkv.weight"].split([QUERY_WIDTH, QUERY_WIDTH, 6])
    scores = (z @ w_q.T) @ (z @ w_k.T).transpose(1, 2) / 4
    h = z + scores.softmax(-1) @ (z @ w_v.T)
    mean, deviation = x_BDL.mean(-1, keepdim=True), x_BDL.std(-1, keepdim=True, correction=0)
    expected = h @ state["forecast.weight"].T * deviation + mean
    forecast = made(x_BDL)
    torch.testing.assert_close(forecast.y_BDH, expected, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(forecast.attention_BDD, scores.softmax(-1), rtol=1e-4, atol=1e-5)


def test_the_norm_is_undone() -> None:
    norm, x_BDL = ReversibleNorm(CHANNELS), torch.randn(4, CHANNELS, 9, generator=torch.Generator().manual_seed(0))
    nn.init.uniform_(norm.scale, 0.5, 2)
    nn.init.uniform_(norm.offset)
    torch.testing.assert_close(norm.back(*norm(x_BDL)), x_BDL)


def test_the_best_linear_map_has_a_loss_of_one() -> None:
    splits = draw(Size(), seed=3)
    train, val = splits["train"], splits["val"]
    w_LH = torch.linalg.lstsq(train.x_NDL.flatten(0, 1), train.y_NDH.flatten(0, 1)).solution
    assert (val.x_NDL @ w_LH - val.y_NDH).square().mean().item() == pytest.approx(1.0, abs=0.03)


def test_sharpness_is_the_largest_eigenvalue_of_the_hessian() -> None:
    made, split = model(norm=False), draw(SMALL, seed=0)["train"]
    split = Split(split.x_NDL[:32], split.y_NDH[:32])
    parameters = list(made.parameters())
    loss = nn.functional.mse_loss(made(split.x_NDL).y_BDH, split.y_NDH)
    gradient = torch.cat([g.flatten() for g in torch.autograd.grad(loss, parameters, create_graph=True)])
    rows = [torch.autograd.grad(g, parameters, retain_graph=True, materialize_grads=True) for g in gradient]
    hessian = torch.stack([torch.cat([part.flatten() for part in row]) for row in rows])
    eigenvalues = torch.linalg.eigvalsh(hessian)
    expected = eigenvalues[eigenvalues.abs().argmax()].item()
    assert sharpness(made, split, iterations=60) == pytest.approx(expected, rel=1e-2)


def test_entropy_is_between_one_channel_and_all_of_them() -> None:
    uniform = torch.full((2, 7, 7), 1 / 7)
    assert attention_entropy(uniform) == pytest.approx(1.9459, abs=1e-4)
    assert attention_entropy(torch.eye(7).expand(2, 7, 7)) == 0


@pytest.mark.parametrize(
    "method", [Method("Adam"), Method("SAM", rho=0.5), Method("both", rho=0.5, sigma=True)], ids=lambda m: m.name
)
def test_training_learns_and_repeats(method: Method) -> None:
    setting = Setting(lr=1e-2, epochs=8, batch=64, size=SMALL, measure_every=4)
    trial, again = (Trainer(method, setting, seed=0).run() for _ in range(2))
    assert trial == again
    assert trial.epochs == [0, 4, 8]
    assert trial.val[-1] < 0.9 * trial.val[0]


def test_sigma_reparam_starts_as_the_plain_model() -> None:
    setting = Setting(lr=1e-2, epochs=1, size=SMALL)
    plain, sigma = (Trainer(Method("", sigma=kind), setting, seed=0) for kind in (False, True))
    assert mse(plain.model, plain.splits["val"]) == pytest.approx(mse(sigma.model, sigma.splits["val"]), rel=1e-5)
