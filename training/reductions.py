"""Numbers that live on some ranks, carried to all."""

from collections.abc import Iterable

import torch
import torch.distributed as dist
from torch import Tensor, nn

from parallel.pipeline import Pipeline
from parallel.topology import Topology


def mean_loss(loss: Tensor, pipeline: Pipeline, topology: Topology) -> float:
    """The loss of the whole batch, on every rank: from the last stages, averaged over data-parallel ranks."""
    counts = pipeline.holds_loss and topology.tensor.rank == 0
    total = loss.detach().clone().double() if counts else torch.zeros((), dtype=torch.float64, device=topology.device)
    if topology.world_size > 1:
        dist.all_reduce(total)
    return total.item() / topology.dp_size


def count_parameters(parameters: Iterable[nn.Parameter], topology: Topology) -> int:
    """Parameters of the whole model: shards added up, replicated ones counted once, data parallelism ignored."""
    mine = sum(p.numel() for p in parameters if getattr(p, "model_parallel", False))
    total = torch.tensor([mine], device=topology.device)
    dist.all_reduce(total, group=topology.model_group)
    return int(total.item())
