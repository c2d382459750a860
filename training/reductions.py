"""What only some ranks know, carried to all."""

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from configs.errors import SteadytrainError
from parallel.pipeline import Pipeline
from parallel.topology import Topology

Answer = TypeVar("Answer")


def mean_loss(loss: Tensor, pipeline: Pipeline, topology: Topology) -> float:
    """The loss of the whole batch, on every rank: from the last stages, averaged over data-parallel ranks."""
    total = _own_term(loss, pipeline, topology)
    if topology.world_size > 1:
        dist.all_reduce(total)
    return total.item() / topology.dp_size


def loss_and_requests(
    loss: Tensor, pipeline: Pipeline, topology: Topology, *, stop_requested: bool, more: Iterable[Tensor] = ()
) -> Tensor:
    """(mean loss, ranks that were asked to stop, sums of `more`), fp64, the same on every rank, still on the device.

    `more`: this rank's terms of further sums over all ranks, as many on each. One reduction; read on the host, the
    first number is what `mean_loss` returns, to the bit.
    """
    own = _own_term(loss, pipeline, topology)
    totals_N = torch.stack([own, torch.full_like(own, float(stop_requested)), *more])
    if topology.world_size > 1:
        with topology.clock.part("communication"):
            dist.all_reduce(totals_N)
    totals_N[0] /= topology.dp_size
    return totals_N


def rise_term(loss: Tensor, higher: Tensor, pipeline: Pipeline, topology: Topology) -> Tensor:
    """This rank's term of the sum over all ranks that is the mean of `higher` less the mean of `loss`, in fp64."""
    rise = _own_term(higher, pipeline, topology) - _own_term(loss, pipeline, topology)
    return rise / topology.dp_size


def _own_term(loss: Tensor, pipeline: Pipeline, topology: Topology) -> Tensor:
    """This rank's term of the sum of losses, in fp64: the last stage's on its first tensor-parallel rank, else 0."""
    counts = pipeline.holds_loss and topology.tensor.rank == 0
    return loss.detach().clone().double() if counts else torch.zeros((), dtype=torch.float64, device=topology.device)


def count_parameters(parameters: Iterable[nn.Parameter], topology: Topology) -> int:
    """Parameters of the whole model: shards added up, replicated ones counted once, data parallelism ignored."""
    mine = sum(p.numel() for p in parameters if getattr(p, "model_parallel", False))
    total = torch.tensor([mine], device=topology.device)
    dist.all_reduce(total, group=topology.model_group)
    return int(total.item())


def peak_memory(topology: Topology) -> int | None:
    """Bytes, the largest over ranks: allocated on a CUDA device, else resident; None where the system tells neither."""
    cuda = topology.device.type == "cuda"
    own = torch.cuda.max_memory_allocated(topology.device) if cuda else _peak_resident()
    peak = torch.tensor([own], dtype=torch.int64, device=topology.device)
    if topology.world_size > 1:
        dist.all_reduce(peak, op=dist.ReduceOp.MAX)
    return int(peak.item()) or None


def _peak_resident() -> int:
    """From Linux's /proc: getrusage's maximum is at least what the parent had when it started this process."""
    status = Path("/proc/self/status")
    lines = status.read_text("ascii").splitlines() if status.exists() else []
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:")), 0)


def from_logging_rank(topology: Topology, ask: Callable[[], Answer]) -> Answer:
    """The logging rank's answer on every rank, or its error."""
    answer: list[Any] = [None]
    if topology.is_logging_rank:
        try:
            answer = [ask()]
        except SteadytrainError as error:
            answer = [error]
    if topology.world_size > 1:
        dist.broadcast_object_list(answer, src=0)
    if isinstance(answer[0], SteadytrainError):
        raise answer[0]
    return answer[0]
