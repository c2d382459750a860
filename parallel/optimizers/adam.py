"""Adam's moments and AdamW's update, over fragments of parameters (Kingma and Ba 2015; Loshchilov and Hutter 2019).

Every function takes at least one fragment.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from parallel.optimizers.fragments import Group, Held

MOMENTS = ("exp_avg", "exp_avg_sq")


def update_moments(fragments: Sequence[Held], gradients: list[Tensor], group: Group) -> None:
    """In place: m = b1 m + (1 - b1) g and v = b2 v + (1 - b2) g^2."""
    beta1, beta2 = group["betas"]
    squares = [held.moments["exp_avg_sq"] for held in fragments]
    torch._foreach_lerp_([held.moments["exp_avg"] for held in fragments], gradients, 1 - beta1)
    torch._foreach_mul_(squares, beta2)
    torch._foreach_addcmul_(squares, gradients, gradients, 1 - beta2)


def roots(fragments: Sequence[Held], group: Group) -> list[Tensor]:
    """sqrt(v / (1 - b2^t)) of each fragment."""
    values = torch._foreach_sqrt([held.moments["exp_avg_sq"] for held in fragments])
    torch._foreach_div_(values, (1 - group["betas"][1] ** group["step"]) ** 0.5)
    return list(values)


def directions(fragments: Sequence[Held], roots: list[Tensor], group: Group) -> list[Tensor]:
    """AdamW's step at a learning rate of 1, without weight decay: m / (1 - b1^t) / (root + eps) of each fragment."""
    values = torch._foreach_add(roots, group["eps"])
    torch._foreach_mul_(values, 1 - group["betas"][0] ** group["step"])
    return list(torch._foreach_div([held.moments["exp_avg"] for held in fragments], values))


def adamw(fragments: Sequence[Held], flat: Tensor, group: Group) -> None:
    """AdamW's update of the fragments' weights, in place."""
    update_moments(fragments, [held.gradient(flat) for held in fragments], group)
    weights = [held.weight for held in fragments]
    torch._foreach_mul_(weights, 1 - group["lr"] * group["weight_decay"])
    torch._foreach_add_(weights, directions(fragments, roots(fragments, group), group), alpha=-group["lr"])
