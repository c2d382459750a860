"""What ranks send each other in a training step, over which links, and how long that takes.

Ranks are laid out tensor-parallel fastest, then data-, then pipeline-parallel (`parallel.topology`), and fill one node
after another. A ring all-reduce of n bytes over r ranks moves 2 n (r - 1) / r through each of them, a gather or
reduce-scatter half of that (Thakur et al. 2005).
"""

from dataclasses import dataclass, replace
from typing import ClassVar, Self

from configs.schema import Config
from monitoring.devices import Device
from planning.memory import FP32

GB = 1e9
LATENCY = 10e-6
"""Seconds that a collective or a message takes however small it is."""


@dataclass(frozen=True)
class Machine:
    """Where a job is to run, and what share of its peak rates code reaches there."""

    device: Device
    nodes: int
    gpus_per_node: int
    efficiency: float = 0.65
    """Of the peak rate, in matrix products."""
    attention_efficiency: float = 0.42
    """Of the peak rate, in fused attention: its softmax is not done by matrix units."""
    memory_efficiency: float = 0.8
    """Of the memory's bandwidth, in all else."""
    link_efficiency: float = 0.75
    """Of the links' bandwidth, in collectives."""
    fused: float = 1.0
    """Share of the elementwise traffic that remains: a compiled layer reads and writes what it fuses once."""
    FUSED: ClassVar[float] = 0.4
    """That share under `training.compile`, of published runs; not measured here."""
    headroom: float = 0.1
    """Of the device's memory, for the allocator's gaps, the CUDA context and the buffers of collectives."""

    @property
    def ranks(self) -> int:
        return self.nodes * self.gpus_per_node

    @property
    def usable(self) -> float:
        """Bytes of a device that tensors may take."""
        return self.device.memory_gib * 2**30 * (1 - self.headroom)

    def with_efficiency(self, efficiency: float) -> Self:
        """Another share of the peak rate in matrix products; attention's in the same proportion."""
        attention = self.attention_efficiency * efficiency / self.efficiency
        return replace(self, efficiency=efficiency, attention_efficiency=attention)

    def holds(self, span: int) -> bool:
        """Whether every group of so many neighbouring ranks lies within one node."""
        return span <= self.gpus_per_node and (self.nodes == 1 or self.gpus_per_node % span == 0)

    def bandwidth(self, neighbours: int, span: int) -> float:
        """Bytes per second and direction of one rank, in a ring over ranks of which `neighbours` share a node each.

        `span`: ranks from the first to the last of the ring. Within a node the ring takes its links; across nodes all
        ranks of a ring on one node carry it over their network cards.
        """
        if self.holds(span):
            return self.device.link * GB * self.link_efficiency
        return min(self.device.link, self.device.network * max(1, neighbours)) * GB * self.link_efficiency


@dataclass(frozen=True)
class Axis:
    """What one rank sends along one axis of the grid per step, and how long that would take by itself."""

    sent: float
    """Bytes."""
    seconds: float
    where: str
    """`node` or `network`."""


def tensor_axis(reduced: float, gathered: float, collectives: float, config: Config, machine: Machine) -> Axis:
    """All-reduces and gathers of the layers of one rank's step."""
    tp = config.parallel.tp
    sent = (2 * reduced + gathered) * (tp - 1) / tp
    return _axis(sent, collectives if tp > 1 else 0, machine.bandwidth(min(tp, machine.gpus_per_node), tp), machine, tp)


def data_axis(numbers: float, config: Config, machine: Machine) -> Axis:
    """DeepSpeed averages fp32 gradients by all-reduce, in ZeRO-1 and -2 alike, and gathers the updated parameters.

    SAM averages those of its first pass too.
    """
    tp, dp = config.parallel.tp, config.parallel.dp or 1
    moves = 5 if config.optimizer.sam_rho else 3
    sent = moves * FP32 * numbers * (dp - 1) / dp
    calls = moves * (1 + numbers // 50_000_000) if dp > 1 else 0
    return _axis(sent, calls, machine.bandwidth(max(1, machine.gpus_per_node // tp), tp * dp), machine, tp * dp)


def pipeline_axis(hidden_bytes: float, micro_batches: int, config: Config, machine: Machine) -> Axis:
    """Hidden states forward and their gradients back, for every chunk and micro-batch."""
    pp, world = config.parallel.pp, config.parallel.tp * config.parallel.pp * (config.parallel.dp or 1)
    messages = 2 * micro_batches * config.parallel.chunks if pp > 1 else 0
    return _axis(hidden_bytes * messages, messages, machine.bandwidth(1, world), machine, world)


def _axis(sent: float, calls: float, bandwidth: float, machine: Machine, span: int) -> Axis:
    return Axis(sent, sent / bandwidth + calls * LATENCY, "node" if machine.holds(span) else "network")
