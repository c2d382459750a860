"""AdamW, the fastest one that can be imported, over two groups of parameters."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from configs.schema import OptimizerConfig


def build_optimizer(
    parameters: Iterable[tuple[str, nn.Parameter]], config: OptimizerConfig, device: torch.device
) -> torch.optim.Optimizer:
    """AdamW with weight decay on matrices and tables only.

    gamma, norms and biases are left out: decay of gamma would shrink the spectral norm itself, and W_hat does not
    depend on the scale of W. They are the parameters of one dimension.
    """
    parameters = list(parameters)
    decay = [p for _, p in parameters if p.ndim >= 2]
    no_decay = [p for _, p in parameters if p.ndim < 2]
    groups = [
        {"params": group, "weight_decay": weight_decay}
        for group, weight_decay in ((decay, config.weight_decay), (no_decay, 0.0))
        if group
    ]
    options: dict[str, Any] = {"lr": config.lr, "betas": config.betas, "eps": config.eps}
    fused = apex_fused_adam() if device.type == "cuda" else None
    if fused is not None:
        return fused(groups, adam_w_mode=True, **options)
    return torch.optim.AdamW(groups, fused=device.type == "cuda", **options)


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
