"""Which rank does what: tensor-, pipeline- and data-parallel coordinates and process groups (megatron-core's)."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from datetime import timedelta
from typing import TYPE_CHECKING

import torch
import torch.distributed as dist

from configs.errors import ConfigError
from parallel.clock import SILENT, Clock, clock_for
from parallel.quiet import megatron_mappings, megatron_parallel_state, old_names_of_collectives

if TYPE_CHECKING:
    from configs.schema import ParallelConfig


@dataclass(frozen=True)
class TensorParallel:
    """What a sharded layer needs to know: its group, and whether activations outside it are split by sequence."""

    group: dist.ProcessGroup | None = None
    rank: int = 0
    size: int = 1
    sequence_parallel: bool = False
    clock: Clock = field(default=SILENT, compare=False, repr=False)
    """What the parts of a step are timed by, on this rank."""

    def share(self, length: int) -> slice:
        """This rank's contiguous share of a dimension of the given length."""
        assert length % self.size == 0, f"{length} does not split over {self.size} tensor-parallel ranks"
        part = length // self.size
        return slice(self.rank * part, (self.rank + 1) * part)


@dataclass(frozen=True)
class Topology:
    """This process's place in the (tp, pp, dp) grid. Ranks are laid out tp fastest, then dp, then pp."""

    rank: int
    world_size: int
    device: torch.device
    tensor: TensorParallel
    pp_rank: int
    pp_size: int
    pp_group: dist.ProcessGroup
    dp_rank: int
    dp_size: int
    dp_group: dist.ProcessGroup
    model_group: dist.ProcessGroup
    """All tensor- and pipeline-parallel ranks of one model replica."""
    stage_group: dist.ProcessGroup | None = None
    """All ranks that share this one's parameters: tensor-parallel (fastest) and data-parallel; None: this one alone."""

    @property
    def is_logging_rank(self) -> bool:
        return self.rank == 0

    @property
    def clock(self) -> Clock:
        return self.tensor.clock


def start(config: ParallelConfig, device: str = "auto", *, timed: bool = False) -> Topology:
    """Join the process group named by the launcher's environment (or make one of this process alone).

    `timed`: the logging rank gets a clock.

    Raises:
        ConfigError: the device is not there, or the world size is not tp x pp x dp.
    """
    torch_device = join(device)
    world_size = dist.get_world_size()
    model_size = config.tp * config.pp
    dp_size = config.dp or max(1, world_size // model_size)
    if world_size != model_size * dp_size:
        raise ConfigError(
            f"parallel.tp x parallel.pp x parallel.dp = {config.tp} x {config.pp} x {dp_size}: "
            f"must equal the number of processes, {world_size}"
        )
    old_names_of_collectives()
    if config.tp > 1:
        megatron_mappings()
    state = megatron_parallel_state()
    state.initialize_model_parallel(
        tensor_model_parallel_size=config.tp,
        pipeline_model_parallel_size=config.pp,
        create_gloo_process_groups=False,
    )
    return Topology(
        rank=dist.get_rank(),
        world_size=world_size,
        device=torch_device,
        tensor=TensorParallel(
            group=state.get_tensor_model_parallel_group(),
            rank=state.get_tensor_model_parallel_rank(),
            size=config.tp,
            sequence_parallel=config.sequence_parallel,
            clock=clock_for(torch_device) if timed and dist.get_rank() == 0 else SILENT,
        ),
        pp_rank=state.get_pipeline_model_parallel_rank(),
        pp_size=config.pp,
        pp_group=state.get_pipeline_model_parallel_group(),
        dp_rank=state.get_data_parallel_rank(),
        dp_size=dp_size,
        dp_group=state.get_data_parallel_group(),
        model_group=state.get_model_parallel_group(),
        stage_group=state.get_tensor_and_data_parallel_group(),
    )


TIMEOUT = timedelta(minutes=30)
"""How long a collective may wait for other ranks: a save or an evaluation may keep them."""


def join(device: str, timeout: timedelta = TIMEOUT) -> torch.device:
    """Join the process group, unless that was done; the device of this process. Raises ConfigError: no such device.

    `timeout` holds for joining and until `be_patient` says otherwise.
    """
    torch_device = _device(device)
    if not dist.is_initialized():
        _init_process_group(torch_device, timeout)
    return torch_device


def be_patient(timeout: timedelta | None = None) -> None:
    """From here on, collectives of the whole world wait so long; default: as long as training needs."""
    # torch has no public way to change the timeout of a group that exists.
    dist.distributed_c10d._set_pg_timeout(timeout or TIMEOUT)


def stop() -> None:
    """Leave the process groups together: gloo aborts when one rank tears down while another still talks."""
    if not dist.is_initialized():
        return
    dist.barrier()
    megatron_parallel_state().destroy_model_parallel()
    dist.destroy_process_group()


def abandon() -> None:
    """Forget the process groups without waiting for the other ranks: this one is going down with an error."""
    if not dist.is_initialized():
        return
    megatron_parallel_state().destroy_model_parallel()
    if dist.get_world_size() == 1:
        dist.destroy_process_group()


def _device(name: str) -> torch.device:
    if name == "cuda" and not torch.cuda.is_available():
        raise ConfigError("training.device = cuda: this machine has no CUDA device (auto or cpu)")
    if name == "cpu" or not torch.cuda.is_available():
        return torch.device("cpu")
    local_rank, count = int(os.environ.get("LOCAL_RANK", "0")), torch.cuda.device_count()
    if local_rank >= count:
        raise ConfigError(
            f"training.device = {name}: local rank {local_rank} needs a CUDA device of its own and sees {count} "
            "(numbered from 0); start fewer processes on this machine, show each of them all devices, or use cpu"
        )
    device = torch.device("cuda", local_rank)
    torch.cuda.set_device(device)
    return device


def _init_process_group(device: torch.device, timeout: timedelta) -> None:
    backend = "nccl" if device.type == "cuda" else "gloo"
    if "RANK" in os.environ and "MASTER_ADDR" in os.environ:
        dist.init_process_group(backend, timeout=timeout)
    else:
        dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1)
