"""Training the dense reference: a whole batch a step, plain clipping, nothing shared with the code under test."""

import torch
from torch import Tensor

from tests.reference import DenseDecoder, Trace
from tests.reference_optimizers import reference_optimizer


def train_dense(model: DenseDecoder, batches: list[tuple[Tensor, Tensor]]) -> Trace:
    """Losses, norms before clipping, the gradients of every step and the parameters in the end."""
    optimizer = reference_optimizer(model)
    trace = Trace()
    for tokens_BT, targets_BT in batches:
        optimizer.zero_grad()
        trace.losses.append(take_gradients(model, tokens_BT, targets_BT))
        largest = {name: scores_BHTT.amax((0, 2, 3)) for name, scores_BHTT in model.scores.items()}
        more = {"sharpness": sharpen(model, tokens_BT, targets_BT)} if model.config.optimizer.sam_rho else {}
        trace.gradients.append({name: p.grad.clone() for name, p in model.parameters.items()})  # type: ignore[union-attr]
        clip = model.config.optimizer.clip or float("inf")
        trace.grad_norms.append(torch.nn.utils.clip_grad_norm_(model.parameters.values(), clip).item())
        optimizer.step()
        if model.config.optimizer.qk_clip:
            more["qk_clipped"] = sum(shrink(model, name, largest_H) for name, largest_H in largest.items())
        for matrix in model.matrices:
            matrix.state.iterate(model.parameters[matrix.weight][matrix.rows])
        trace.more.append(more)
    trace.parameters = {name: p.detach().clone() for name, p in model.parameters.items()}
    return trace


def take_gradients(model: DenseDecoder, tokens_BT: Tensor, targets_BT: Tensor) -> float:
    """Leave the gradients at the weights as they are in `grad`; the loss there."""
    loss = model.loss(tokens_BT, targets_BT)
    loss.backward()
    return loss.item()


def sharpen(model: DenseDecoder, tokens_BT: Tensor, targets_BT: Tensor) -> float:
    """Put the gradients at w + rho g / |g| in the place of those at w; how much higher the loss is there.

    u and v stay what they are, so sigma is that of the moved weights and autograd differentiates through it.
    """
    parameters = list(model.parameters.values())
    norm = torch.cat([p.grad.flatten() for p in parameters]).norm()  # type: ignore[union-attr]
    with torch.no_grad():
        here = model.loss(tokens_BT, targets_BT)
        kept = [p.clone() for p in parameters]
        for p in parameters:
            p += model.config.optimizer.sam_rho * p.grad / (norm + 1e-12)
            p.grad = None
    higher = model.loss(tokens_BT, targets_BT)
    higher.backward()
    with torch.no_grad():
        for p, value in zip(parameters, kept, strict=True):
            p.copy_(value)
    return (higher.detach() - here).item()


@torch.no_grad()
def shrink(model: DenseDecoder, name: str, largest_H: Tensor) -> float:
    """QK-Clip of one attention layer, head by head, given each head's largest logit; how many heads are clipped."""
    shape, threshold = model.config.model, model.config.optimizer.qk_clip
    K, H = shape.head_size, shape.heads
    places = [projection(model, name, block) for block in ("q", "k")]
    if shape.reparam.kind == "sigma":
        if largest_H.max() <= threshold:
            return 0.0
        for m in model.matrices:
            if any(m.weight == weight and m.rows.start <= first < m.rows.stop for weight, first in places):
                model.parameters[m.gamma][m.index] *= (threshold / largest_H.max()) ** 0.5
        return float(H)
    powers = (1.0, 0.0) if shape.key_value_heads < H else (0.5, 0.5)
    for head in (largest_H > threshold).nonzero().flatten().tolist():
        for (weight, first), power in zip(places, powers, strict=True):
            if power:
                model.parameters[weight][first + head * K : first + (head + 1) * K] *= (
                    threshold / largest_H[head]
                ) ** power
    return float((largest_H > threshold).sum())


def projection(model: DenseDecoder, name: str, block: str) -> tuple[str, int]:
    """The weight whose rows make the heads of queries or keys, and the first of these rows."""
    low_rank = block in model.config.model.low_rank.targets
    rows = model.projection_rows(low_rank=low_rank)
    first = sum(list(rows.values())[: list(rows).index(block)])
    return f"{name}.{'low_rank' if low_rank else 'qkv'}.weight", first
