"""How long a training step takes: computation, memory traffic, communication, the pipeline's bubble, its boundary.

What is done is counted (`planning.profile`); how fast is the machine's peak rates times shares of them that are stated,
can be overridden, and are calibrated on runs that others published (`planning.published`).
"""

from dataclasses import dataclass
from functools import lru_cache

from configs.schema import Config
from model.flops import training_flops
from parallel.bubble import StageTimes, step_time
from parallel.embedding import count_rows
from planning.communication import GB, Axis, Machine, data_axis, pipeline_axis, tensor_axis
from planning.memory import FP32, held_by, hidden_bytes, micro_batches, stages_of
from planning.profile import Held, Profile
from planning.work import Work

LAUNCH = 5e-6
"""Seconds in which Python and torch start one operation: small models wait for that, not for the device."""
UPDATE_TRAFFIC = {"adamw": 28, "stable_adamw": 60, "muon": 44}
"""Bytes read and written per number that a rank updates: weight, gradient and both moments; more where not fused."""
PULL_BACK_TRAFFIC, REFRESH_TRAFFIC = 8 + 12, 8 + 4
"""sigmaReparam, bytes per number: <G, W>, G turned into dW; W read twice in a power iteration and once for W_hat."""
SAM_TRAFFIC = 4 + 8 + 12 + 8
"""SAM, bytes per number: the norm; w kept; w + e; w put back. W_hat follows w twice."""


@dataclass(frozen=True)
class Speed:
    """Of one layout: seconds of a step by part, and what follows from their sum."""

    step: float
    compute: float
    """Forward and backward of the busiest rank, by itself."""
    bubble: float
    """Share of the pipelined part of the step in which a rank idles, mean over ranks."""
    boundary: float
    """Optimizer, pull-back and refresh."""
    tensor: Axis
    data: Axis
    pipeline: Axis
    tokens: int
    """Of a step."""
    ranks: int
    flops_per_token: float
    peak_flops: float
    """Of one device."""

    @property
    def tokens_per_s(self) -> float:
        return self.tokens / self.step

    @property
    def tokens_per_s_per_device(self) -> float:
        return self.tokens_per_s / self.ranks

    @property
    def mfu(self) -> float:
        """Model FLOPs utilisation, by the convention of `model.flops`."""
        return self.tokens_per_s_per_device * self.flops_per_token / self.peak_flops


def speed(config: Config, profile: Profile, machine: Machine, vocab_size: int) -> Speed:
    """Of a resolved configuration."""
    training, parallel = config.training, config.parallel
    assert training.micro_batch_size is not None and parallel.dp is not None
    count, sequences = micro_batches(config), training.micro_batch_size
    slowest = StageTimes(0.0, 0.0, 0.0)
    busiest, held = Work(), Held()
    for pp_rank in sorted({0, parallel.pp // 2, parallel.pp - 1}):
        stages = stages_of(config, pp_rank)
        passes = [profile.run(stage.layers, sequences, first=stage.first, last=stage.last) for stage in stages]
        forward, backward = (_sum([getattr(p, name) for p in passes]) for name in ("forward", "backward"))
        times = _times(forward, backward, config, machine, chunks=len(stages))
        if times.total > slowest.total:
            slowest, busiest = times, (forward + backward) * count
        here = held_by(config, profile, pp_rank)
        held = max(held, here, key=lambda part: part.numbers)
    message = pipeline_axis(hidden_bytes(config), count, config, machine)
    send = message.seconds / (2 * count * parallel.chunks) if parallel.pp > 1 else 0.0
    busy = slowest.total * parallel.chunks * count
    once = _piped(config, StageTimes(slowest.forward, slowest.backward_input, slowest.backward_weight, send), count)
    repeats = 2 if config.optimizer.sam_rho else 1  # SAM passes twice
    busy, piped = busy * repeats, once * repeats
    data = data_axis(held.numbers, config, machine)
    boundary = _boundary(held, config, machine)
    rows = count_rows(vocab_size, config.model.vocab_multiple)
    return Speed(
        step=piped + data.seconds + boundary,
        compute=busy,
        bubble=1 - busy / piped,
        boundary=boundary,
        tensor=tensor_axis(
            busiest.reduced * repeats, busiest.gathered * repeats, busiest.collectives * repeats, config, machine
        ),
        data=data,
        pipeline=Axis(message.sent * repeats, message.seconds * repeats, message.where),
        tokens=training.global_batch_size * training.sequence_length,
        ranks=parallel.tp * parallel.pp * parallel.dp,
        flops_per_token=training_flops(config.model, rows, training.sequence_length).total,
        peak_flops=_peak(config, machine),
    )


def _sum(works: list[Work]) -> Work:
    total = Work()
    for work in works:
        total += work
    return total


def _peak(config: Config, machine: Machine) -> float:
    return machine.device.tflops[config.training.precision] * 1e12


def _times(forward: Work, backward: Work, config: Config, machine: Machine, *, chunks: int) -> StageTimes:
    """Of one chunk and micro-batch; the weights' gradients are as many FLOPs as the forward pass."""
    ahead, back = _seconds(forward, config, machine), _seconds(backward, config, machine)
    weights = min(back / 2, forward.matrix_flops / (_peak(config, machine) * machine.efficiency))
    return StageTimes(ahead / chunks, (back - weights) / chunks, weights / chunks)


def _seconds(work: Work, config: Config, machine: Machine) -> float:
    """Of a rank that does this by itself: the device's time, or the host's where that is more; then its collectives."""
    peak = _peak(config, machine)
    device = work.matrix_flops / (peak * machine.efficiency)
    device += work.attention_flops / (peak * machine.attention_efficiency)
    device += work.traffic * machine.fused / (machine.device.bandwidth * GB * machine.memory_efficiency)
    collectives = tensor_axis(work.reduced, work.gathered, work.collectives, config, machine).seconds
    return max(device, work.launches * LAUNCH) + collectives


def _boundary(held: Held, config: Config, machine: Machine) -> float:
    """The optimizer's update of a rank's share, and both moves of sigmaReparam, at the memory's rate."""
    share = held.numbers / (config.parallel.dp or 1)
    traffic = share * UPDATE_TRAFFIC[config.optimizer.name] + held.numbers * FP32
    traffic += held.reparametrised * (PULL_BACK_TRAFFIC + REFRESH_TRAFFIC) + held.effective
    if config.optimizer.sam_rho:
        traffic += held.numbers * SAM_TRAFFIC + held.reparametrised * (PULL_BACK_TRAFFIC + 2 * REFRESH_TRAFFIC)
        traffic += 2 * held.effective
    seconds = traffic / (machine.device.bandwidth * GB * machine.memory_efficiency)
    if config.optimizer.name == "muon":
        # Five Newton-Schulz steps of three products, in fp32, the matrices shared by dp.
        flops = 5 * 3 * 2 * held.hidden / (config.parallel.dp or 1) * config.model.hidden_size
        seconds += flops / (machine.device.tflops["fp32"] * 1e12 * machine.efficiency)
    return seconds


def _piped(config: Config, times: StageTimes, count: int) -> float:
    """All micro-batches through the pipeline; beyond some rounds each adds its own work and nothing else."""
    parallel = config.parallel
    simulated = min(count, 4 * parallel.pp)
    rest = (count - simulated) * parallel.chunks * times.total
    return _simulated(parallel.schedule, parallel.pp, parallel.chunks, simulated, times) + rest


@lru_cache(maxsize=4096)
def _simulated(schedule: str, pp: int, chunks: int, micro_batches: int, times: StageTimes) -> float:
    return step_time(schedule, pp, chunks, micro_batches, times)
