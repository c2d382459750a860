"""Training one forecaster, and what is measured of it on the way."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from configs.schema import ReparamConfig
from examples.samformer.forecaster import Samformer
from examples.samformer.problem import CHANNELS, Size, Split, draw
from parallel.linear import LinearSpec, ShardedLinear
from parallel.spectral import SpectralReparam
from parallel.topology import TensorParallel
from training.sam import Sam

MEASURED = 128
"""Series that entropy and sharpness are measured on."""


@dataclass(frozen=True)
class Method:
    """What a forecaster is trained with besides Adam: SAM's radius (0: none), and sigmaReparam of every linear."""

    name: str
    rho: float = 0.0
    sigma: bool = False


@dataclass(frozen=True)
class Setting:
    """How all methods of a comparison train."""

    lr: float
    epochs: int
    batch: int = 32
    norm: bool = False
    """With RevIN."""
    size: Size = field(default_factory=Size)
    measure_every: int = 10
    """Epochs between measurements."""


@dataclass
class Trial:
    """What was measured, at the start, every so many epochs and at the end; losses are mean squared errors."""

    epochs: list[int] = field(default_factory=list)
    train: list[float] = field(default_factory=list)
    val: list[float] = field(default_factory=list)
    entropy: list[float] = field(default_factory=list)
    """Mean entropy of a channel's attention, in nats; at most log(channels)."""
    sharpness: list[float] = field(default_factory=list)
    """Largest eigenvalue, in size, of the Hessian of the training loss in the weights that the layers multiply by."""
    test: float = float("nan")


class Trainer:
    """One forecaster, from seed to test loss. Everything of a seed but the method is the same: data, order, start."""

    def __init__(self, method: Method, setting: Setting, seed: int) -> None:
        size = setting.size
        self.setting, self.splits = setting, draw(size, seed)
        spec = LinearSpec(TensorParallel(), seed, reparametrised=method.sigma, bias=True)
        self.model = Samformer(CHANNELS, size.length, size.horizon, spec, norm=setting.norm)
        linears = [(name, m) for name, m in self.model.named_modules() if isinstance(m, ShardedLinear)]
        self.spectral = SpectralReparam(linears, spec.tp)
        self.spectral.start(ReparamConfig(kind="sigma", gamma_init="sigma"), seed)
        self.optimizer = torch.optim.Adam(self.model.parameters(), lr=setting.lr)
        self.sam = Sam(self.model.parameters(), method.rho, self.spectral) if method.rho else None
        self.order = torch.Generator().manual_seed(seed)

    def run(self) -> Trial:
        """Train and measure."""
        trial, setting = Trial(), self.setting
        self._measure(trial, 0)
        for epoch in range(1, setting.epochs + 1):
            for batch in torch.randperm(setting.size.train, generator=self.order).split(setting.batch):
                self._step(self.splits["train"].x_NDL[batch], self.splits["train"].y_NDH[batch])
            if epoch % setting.measure_every == 0 or epoch == setting.epochs:
                self._measure(trial, epoch)
        trial.test = mse(self.model, self.splits["test"])
        return trial

    def _step(self, x_BDL: Tensor, y_BDH: Tensor) -> None:
        self.optimizer.zero_grad()
        self._gradients(x_BDL, y_BDH)
        if self.sam is not None:
            self.sam.ascend()
            self._gradients(x_BDL, y_BDH)
            self.sam.restore()
        self.optimizer.step()
        self.spectral.refresh()

    def _gradients(self, x_BDL: Tensor, y_BDH: Tensor) -> None:
        nn.functional.mse_loss(self.model(x_BDL).y_BDH, y_BDH).backward()
        self.spectral.pull_back()

    def _measure(self, trial: Trial, epoch: int) -> None:
        train = self.splits["train"]
        some = Split(train.x_NDL[:MEASURED], train.y_NDH[:MEASURED])
        trial.epochs.append(epoch)
        trial.train.append(mse(self.model, train))
        trial.val.append(mse(self.model, self.splits["val"]))
        trial.entropy.append(attention_entropy(self.model(some.x_NDL).attention_BDD))
        trial.sharpness.append(sharpness(self.model, some))


@torch.no_grad()
def mse(model: Samformer, split: Split) -> float:
    """Mean squared error of the forecasts."""
    return nn.functional.mse_loss(model(split.x_NDL).y_BDH, split.y_NDH).item()


@torch.no_grad()
def attention_entropy(attention_BDD: Tensor) -> float:
    """Mean entropy of the rows, in nats.

    The project's monitor (`monitoring.entropy`) forms causal scores block by block for thousands of tokens; here every
    channel sees every channel, and the whole matrix of seven is at hand.
    """
    return float(torch.special.entr(attention_BDD).sum(-1).mean())


def sharpness(model: Samformer, split: Split, iterations: int = 15) -> float:
    """Largest eigenvalue in size of the Hessian of the loss, as so many power iterations find it; below 0 at a saddle.

    In W_hat where a linear is reparametrised: its function does not depend on the size of W.
    """
    loss = nn.functional.mse_loss(model(split.x_NDL).y_BDH, split.y_NDH)
    moved = [p for name, p in model.named_parameters() if not name.endswith("gamma")]
    gradients = torch.autograd.grad(loss, moved, create_graph=True)
    generator = torch.Generator().manual_seed(0)
    direction = [torch.randn(p.shape, generator=generator) for p in moved]
    value = torch.zeros(())
    for _ in range(iterations):
        norm = torch.stack([d.norm() for d in direction]).norm()
        direction = [d / norm for d in direction]
        product = torch.autograd.grad(_inner(gradients, direction), moved, retain_graph=True)
        value = _inner(product, direction)
        direction = list(product)
    return float(value)


def _inner(one: Sequence[Tensor], other: Sequence[Tensor]) -> Tensor:
    return torch.stack([(a * b).sum() for a, b in zip(one, other, strict=True)]).sum()
