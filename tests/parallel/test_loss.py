"""z-loss in float64, and over a vocabulary that ranks share, from the definition."""

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from parallel import topology as topologies
from parallel.loss import VocabParallelLoss
from parallel.topology import TensorParallel
from tests.distributed import spawn
from tests.layouts import config

B, T, LIVE, ROWS = 2, 5, 13, 32
"""Of 32 rows 19 pad: with two ranks, the second has padding only."""


def logits_targets(dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    logits = 3 * torch.randn(B, T, ROWS, generator=generator)
    return logits.to(dtype), torch.randint(LIVE, (B, T), generator=generator)


def definition(z_loss: float) -> tuple[Tensor, Tensor]:
    """- log softmax of the target + z_loss * log^2 Z, mean over tokens; and the gradient of the logits."""
    logits, targets = logits_targets(torch.float64)
    logits.requires_grad_()
    z_BT = logits[..., :LIVE].exp().sum(-1)
    p_BT = logits.gather(-1, targets[..., None]).exp()[..., 0] / z_BT
    loss = (-p_BT.log() + z_loss * z_BT.log() ** 2).mean()
    loss.backward()
    assert logits.grad is not None
    return loss.detach(), logits.grad


def on_rank(tp: int, z_loss: float) -> tuple[Tensor, Tensor]:
    topology = topologies.start(config(tp, parallel={"tp": tp}).parallel, "cpu")
    logits, targets = logits_targets(torch.float32)
    mine = logits[..., topology.tensor.share(ROWS)].clone().requires_grad_()
    loss = VocabParallelLoss(LIVE, topology.tensor, z_loss=z_loss)(mine * 1, targets)
    loss.backward()
    grads = [torch.empty_like(mine) for _ in range(tp)]
    assert mine.grad is not None
    dist.all_gather(grads, mine.grad.contiguous(), group=topology.tensor.group)
    return loss.detach(), torch.cat(grads, -1)


def test_z_loss_on_one_rank_in_float64() -> None:
    logits, targets = logits_targets(torch.float64)
    logits.requires_grad_()
    loss = VocabParallelLoss(LIVE, TensorParallel(), z_loss=0.1)(logits, targets)
    loss.backward()
    expected, gradient = definition(0.1)
    torch.testing.assert_close(loss.detach(), expected, rtol=1e-12, atol=0)
    torch.testing.assert_close(logits.grad, gradient, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("tp", [2, 4])
def test_z_loss_of_a_shared_vocabulary(tp: int) -> None:
    expected, gradient = definition(0.1)
    for loss, grad in spawn(tp, on_rank, tp, 0.1):
        torch.testing.assert_close(loss.double(), expected, rtol=1e-6, atol=0)
        torch.testing.assert_close(grad.double(), gradient, rtol=0, atol=1e-7)


def test_without_z_loss_nothing_is_added() -> None:
    logits, targets = logits_targets(torch.float32)
    plain = VocabParallelLoss(LIVE, TensorParallel())(logits, targets)
    assert torch.equal(plain, torch.nn.functional.cross_entropy(logits[..., :LIVE].flatten(0, 1), targets.flatten()))
