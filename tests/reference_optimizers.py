"""Optimizers of the dense reference, written from their formulas over whole tensors, in fp64."""

from collections.abc import Iterator

import torch
from torch import Tensor

from tests.reference import DenseDecoder


def reference_optimizer(model: DenseDecoder) -> torch.optim.Optimizer:
    """The configured one; weight decay on what has two dimensions."""
    config = model.config.optimizer
    decay = [p for p in model.parameters.values() if p.ndim >= 2]
    rest = [p for p in model.parameters.values() if p.ndim < 2]
    groups = [{"params": decay, "weight_decay": config.weight_decay}, {"params": rest, "weight_decay": 0.0}]
    if config.name == "adamw":
        return torch.optim.AdamW(groups, lr=config.lr, betas=config.betas, eps=config.eps)
    return {"stable_adamw": ReferenceStableAdamW, "muon": ReferenceMuon}[config.name](model)


def projections(model: DenseDecoder, name: str, tensor: Tensor) -> list[Tensor]:
    """Views of a parameter, or of something shaped like it: q, k, v, gate and up apart."""
    if name.endswith("gamma"):
        return [tensor]
    if ".qkv." in name or ".low_rank." in name:
        return list(tensor.split(list(model.projection_rows(low_rank=".low_rank." in name).values())))
    return list(tensor.chunk(2)) if ".gate_up." in name else [tensor]


class _Reference(torch.optim.Optimizer):
    """Steps whole tensors one by one, at the learning rate of the configuration; state in fp64."""

    def __init__(self, model: DenseDecoder) -> None:
        super().__init__(model.parameters.values(), {})
        self.model, self.config, self.t = model, model.config.optimizer, 0
        self.kept: dict[tuple[str, int], list[Tensor]] = {}

    def tensors(self) -> Iterator[tuple[str, int, Tensor, Tensor, float]]:
        """(parameter, index in it, weights, gradient, weight decay) of each tensor, without padded rows."""
        for name, parameter in self.model.parameters.items():
            assert parameter.grad is not None
            rows = self.model.vocab_size if name in ("embedding.weight", "head.weight") else None
            weights = projections(self.model, name, parameter.detach()[:rows])
            gradients = projections(self.model, name, parameter.grad.double()[:rows])
            decay = self.config.weight_decay if parameter.ndim == 2 else 0.0
            for index, (w, g) in enumerate(zip(weights, gradients, strict=True)):
                yield name, index, w, g, decay

    def state_of(self, name: str, index: int, like: Tensor) -> list[Tensor]:
        return self.kept.setdefault((name, index), [torch.zeros_like(like), torch.zeros_like(like)])

    def step(self, closure: None = None) -> None:  # type: ignore[override]
        self.t += 1
        for name, index, w, g, decay in self.tensors():
            first, second = self.state_of(name, index, g)
            w.copy_(self.updated(name, w.double(), g, first, second, decay))

    def updated(self, name: str, w: Tensor, g: Tensor, first: Tensor, second: Tensor, decay: float) -> Tensor:
        raise NotImplementedError


class ReferenceStableAdamW(_Reference):
    """Wortsman et al. 2023, algorithm 2: betas that grow with t in place of debiasing."""

    def updated(self, name: str, w: Tensor, g: Tensor, first: Tensor, second: Tensor, decay: float) -> Tensor:
        beta1, beta2 = (b * (1 - b ** (self.t - 1)) / (1 - b**self.t) for b in self.config.betas)
        first.copy_(beta1 * first + (1 - beta1) * g)
        second.copy_(beta2 * second + (1 - beta2) * g * g)
        eps = self.config.eps
        rms = (g * g / second.clamp(min=eps**2)).mean().sqrt().item()
        eta = self.config.lr / max(1.0, rms)
        return w - eta * decay * w - eta * first / (second.sqrt() + eps)


class ReferenceMuon(_Reference):
    """Momentum as a sum (Jordan et al. 2024); orthogonalised by the quintic of its singular values, from an SVD."""

    def updated(self, name: str, w: Tensor, g: Tensor, first: Tensor, second: Tensor, decay: float) -> Tensor:
        lr, mu = self.config.lr, self.config.muon_momentum
        if not (name.startswith("layers.") and w.ndim == 2):
            beta1, beta2 = self.config.betas
            first.copy_(beta1 * first + (1 - beta1) * g)
            second.copy_(beta2 * second + (1 - beta2) * g * g)
            m, v = first / (1 - beta1**self.t), second / (1 - beta2**self.t)
            return w - lr * decay * w - lr * m / (v.sqrt() + self.config.eps)
        first.copy_(mu * first + g)
        return w - lr * decay * w - lr * 0.2 * max(w.shape) ** 0.5 * quintic(g + mu * first)


def quintic(matrix: Tensor) -> Tensor:
    """Newton-Schulz on a matrix is a polynomial of each of its singular values."""
    left, s, right = torch.linalg.svd(matrix, full_matrices=False)
    s = s / s.norm()
    for _ in range(5):
        s = 3.4445 * s - 4.7750 * s**3 + 2.0315 * s**5
    return left @ torch.diag(s) @ right
