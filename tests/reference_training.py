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
    K, H, G = shape.head_size, shape.heads, shape.key_value_heads
    weight = model.parameters[f"{name}.qkv.weight"]
    if shape.reparam.kind == "sigma":
        if largest_H.max() <= threshold:
            return 0.0
        for matrix in model.matrices:
            if matrix.weight == f"{name}.qkv.weight" and matrix.rows.start < (H + G) * K:
                model.parameters[matrix.gamma][matrix.index] *= (threshold / largest_H.max()) ** 0.5
        return float(H)
    for head in (largest_H > threshold).nonzero().flatten().tolist():
        factor, first = threshold / largest_H[head], head * K
        if G < H:
            weight[first : first + K] *= factor
        else:
            weight[first : first + K] *= factor**0.5
            weight[H * K + first : H * K + first + K] *= factor**0.5
    return float((largest_H > threshold).sum())
