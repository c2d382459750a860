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
        trace.gradients.append({name: p.grad.clone() for name, p in model.parameters.items()})  # type: ignore[union-attr]
        clip = model.config.optimizer.clip or float("inf")
        trace.grad_norms.append(torch.nn.utils.clip_grad_norm_(model.parameters.values(), clip).item())
        optimizer.step()
        after_update(model)
    trace.parameters = {name: p.detach().clone() for name, p in model.parameters.items()}
    return trace


def take_gradients(model: DenseDecoder, tokens_BT: Tensor, targets_BT: Tensor) -> float:
    """Leave the gradients that the optimizer is to use in `grad`; the loss at the weights as they are."""
    loss = model.loss(tokens_BT, targets_BT)
    loss.backward()
    return loss.item()


def after_update(model: DenseDecoder) -> None:
    """What happens to the weights between the update and the next step."""
    for matrix in model.matrices:
        matrix.state.iterate(model.parameters[matrix.weight][matrix.rows])
