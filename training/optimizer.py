"""The optimizer that the configuration names, over two groups of parameters: with weight decay and without."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from parallel.optimizers.muon import Muon
from parallel.optimizers.stable_adamw import StableAdamW

if TYPE_CHECKING:
    from configs.schema import OptimizerConfig

VOCABULARY = ("embedding.weight", "head.weight")
"""Parameters with a row per token of the padded vocabulary."""


def build_optimizer(
    parameters: Iterable[tuple[str, nn.Parameter]], config: OptimizerConfig, device: torch.device, vocab_size: int
) -> torch.optim.Optimizer:
    """An optimizer with weight decay on matrices and tables only; `vocab_size`: live tokens, before padding.

    gamma, norms and biases are left out: decay of gamma would shrink the spectral norm itself, and W_hat does not
    depend on the scale of W. They are the parameters of one dimension. Muon orthogonalises the matrices of the
    decoder's layers; embedding, positions and head are AdamW's. The two groups are the same for every optimizer:
    all ranks of a model must have the same number of them, and not every pipeline stage has an embedding.
    """
    parameters = list(parameters)
    groups = _groups([p for _, p in parameters], config.weight_decay)
    options: dict[str, Any] = {"lr": config.lr, "betas": config.betas, "eps": config.eps}
    if config.name == "stable_adamw":
        live_rows = {p: vocab_size for name, p in parameters if name in VOCABULARY}
        return StableAdamW(groups, live_rows, **options)
    if config.name == "muon":
        matrices = [p for name, p in parameters if name.startswith("layers.") and p.ndim == 2]
        return Muon(groups, matrices, momentum=config.muon_momentum, **options)
    return _adamw(groups, options, device)


def _groups(parameters: Sequence[nn.Parameter], weight_decay: float) -> list[dict[str, Any]]:
    decay = [p for p in parameters if p.ndim >= 2]
    no_decay = [p for p in parameters if p.ndim < 2]
    return [
        {"params": group, "weight_decay": decayed}
        for group, decayed in ((decay, weight_decay), (no_decay, 0.0))
        if group
    ]


def _adamw(groups: list[dict[str, Any]], options: dict[str, Any], device: torch.device) -> torch.optim.Optimizer:
    """The fastest AdamW that can be imported. torch's fused one reads and writes every number once, on CPUs too."""
    fused = apex_fused_adam() if device.type == "cuda" else None
    if fused is not None:
        return fused(groups, adam_w_mode=True, **options)
    return torch.optim.AdamW(groups, fused=True, **options)


def apex_fused_adam() -> Any | None:
    """NVIDIA apex's FusedAdam if it is installed with its kernels; None otherwise.

    The package called `apex` on PyPI is another one: NVIDIA's is told by its compiled `amp_C`.
    """
    try:
        import amp_C  # type: ignore[import-not-found]  # noqa: F401
        from apex.optimizers import FusedAdam
    except ImportError:
        return None
    return FusedAdam
