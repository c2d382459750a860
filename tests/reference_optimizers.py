"""Optimizers of the dense reference, written from their formulas over whole tensors."""

import torch

from tests.reference import DenseDecoder


def reference_optimizer(model: DenseDecoder) -> torch.optim.Optimizer:
    """Plain AdamW; weight decay on what has two dimensions."""
    config = model.config.optimizer
    decay = [p for p in model.parameters.values() if p.ndim >= 2]
    rest = [p for p in model.parameters.values() if p.ndim < 2]
    return torch.optim.AdamW(
        [{"params": decay, "weight_decay": config.weight_decay}, {"params": rest, "weight_decay": 0.0}],
        lr=config.lr,
        betas=config.betas,
        eps=config.eps,
    )
