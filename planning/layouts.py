"""Every layout of a model over a machine: which fit, how fast each would be, and why the others do not fit."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

from configs import checks
from configs.schema import SINGLE_STAGE, Config
from planning.communication import Machine
from planning.memory import Memory, rank_memory
from planning.profile import Profiler
from planning.speed import Speed, speed

GIB = 2**30
RECOMPUTE = ("none", "selective", "full")
SCHEDULES: tuple[tuple[str, int], ...] = (
    ("1f1b", 1), ("interleaved_1f1b", 2), ("interleaved_1f1b", 4), ("interleaved_zero_bubble", 2), ("zbv", 2),
)  # fmt: skip
"""Pipeline schedules with their chunks per rank. GPipe is never better than 1F1B: as fast, and keeps more."""
MICRO_BATCH_SIZES = (1, 2, 4, 8, 16)
DEEPEST = 32
"""Pipeline ranks that are looked at: deeper ones are all bubble."""


@dataclass(frozen=True)
class Plan:
    """One layout: the resolved configuration, what its first and last pipeline ranks need, and its speed."""

    config: Config
    first: Memory
    last: Memory
    speed: Speed

    @property
    def worst(self) -> Memory:
        """Of both ranks, the one that needs more: ranks between them need no more than the first."""
        return max(self.first, self.last, key=lambda memory: memory.peak)


@dataclass(frozen=True)
class TooLarge:
    """A layout that does not fit its device."""

    config: Config
    memory: Memory
    where: str
    """`first`, `last` or `only` stage."""


@dataclass(frozen=True)
class Search:
    """Layouts by falling speed, and what was left out."""

    plans: list[Plan]
    too_large: list[TooLarge]
    refused: dict[str, int]
    """How many layouts each rule of the configuration refuses."""


class Planner:
    """Plans layouts of one model; to be used inside `fake_ranks(machine.gpus_per_node)` or more."""

    def __init__(self, config: Config, vocab_size: int, machine: Machine) -> None:
        self._config = config
        self._vocab_size = vocab_size
        self._machine = machine
        self._profiler = Profiler(config, vocab_size)

    def plan(self, config: Config) -> Plan:
        """Of a resolved configuration, whether it fits or not."""
        first, last = self._memory(config)
        profile = self._profile(config)
        return Plan(config, first, last, speed(config, profile, self._machine, self._vocab_size))

    def search(self) -> Search:
        """All layouts of the configuration's model and global batch over the whole machine."""
        plans: list[Plan] = []
        too_large: list[TooLarge] = []
        refused: dict[str, int] = {}
        for candidate in candidates(self._config, self._machine):
            try:
                config = checks.resolve(candidate, self._machine.ranks)
            except checks.Impossible as error:
                key = error.problems[0].key
                refused[key] = refused.get(key, 0) + 1
                continue
            first, last = self._memory(config)
            if max(first.peak, last.peak) <= self._machine.usable:
                plans.append(
                    Plan(config, first, last, speed(config, self._profile(config), self._machine, self._vocab_size))
                )
                continue
            where = "only" if config.parallel.pp == 1 else "first" if first.peak >= last.peak else "last"
            too_large.append(TooLarge(config, max(first, last, key=lambda memory: memory.peak), where))
        plans.sort(key=lambda plan: -plan.speed.tokens_per_s)
        return Search(plans, too_large, refused)

    def _profile(self, config: Config) -> Any:
        parallel = config.parallel
        return self._profiler.profile(parallel.tp, parallel.sequence_parallel, config.training.recompute)

    def _memory(self, config: Config) -> tuple[Memory, Memory]:
        profile = self._profile(config)
        first = rank_memory(config, profile, 0)
        return first, first if config.parallel.pp == 1 else rank_memory(config, profile, config.parallel.pp - 1)


def candidates(config: Config, machine: Machine) -> Iterator[Config]:
    """Layouts worth a look, unchecked: tensor parallelism stays within a node, where its many collectives are fast."""
    model = config.model
    tensor = [
        tp for tp in _divisors(machine.gpus_per_node) if model.heads % tp == 0 and model.key_value_heads % tp == 0
    ]
    for tp, pp in product(tensor, _divisors(model.layers)):
        if pp > DEEPEST or machine.ranks % (tp * pp):
            continue
        dp = machine.ranks // (tp * pp)
        per_rank = config.training.global_batch_size // dp
        sizes = [size for size in MICRO_BATCH_SIZES if size <= per_rank] or [1]
        # Sequence parallelism sends as much and keeps less: without it only where the sequence does not split.
        sequence = tp > 1 and config.training.sequence_length % tp == 0
        for (schedule, chunks), size, recompute in product(SCHEDULES if pp > 1 else SCHEDULES[:1], sizes, RECOMPUTE):
            yield laid_out(config, tp, pp, schedule, chunks, size, recompute, sequence_parallel=sequence)


def laid_out(
    config: Config, tp: int, pp: int, schedule: str, chunks: int, size: int, recompute: str, *, sequence_parallel: bool
) -> Config:
    """The configuration with another layout; not checked."""
    parallel = {
        "tp": tp, "pp": pp, "dp": None, "schedule": schedule, "sequence_parallel": sequence_parallel,
        "stages_per_rank": None if pp == 1 or schedule in SINGLE_STAGE else chunks,
    }  # fmt: skip
    training = {"micro_batch_size": size, "recompute": recompute}
    return config.model_copy(
        update={
            "parallel": config.parallel.model_copy(update=parallel),
            "training": config.training.model_copy(update=training),
        }
    )


def reasons(too_large: Sequence[TooLarge], plans: Sequence[Plan], machine: Machine) -> list[str]:
    """One line for each (tp, pp) of which nothing fits, about the one that comes closest."""
    fitting = {(plan.config.parallel.tp, plan.config.parallel.pp) for plan in plans}
    closest: dict[tuple[int, int], TooLarge] = {}
    for found in too_large:
        key = (found.config.parallel.tp, found.config.parallel.pp)
        if key not in fitting and (key not in closest or found.memory.peak < closest[key].memory.peak):
            closest[key] = found
    return [_reason(found, machine) for _, found in sorted(closest.items())]


def _reason(found: TooLarge, machine: Machine) -> str:
    memory, parallel = found.memory, found.config.parallel
    phase = max(memory.phases, key=lambda name: memory.phases[name])
    parts = {
        "weights": memory.weights,
        "optimizer states": memory.moments,
        "gradients": memory.gradients,
        "activations": memory.in_flight,
        "receive buffers": memory.received,
        "reduction bucket": memory.reduction if phase == "reduction" else 0.0,
    }
    largest = max(parts, key=lambda name: parts[name])
    return (
        f"tp {parallel.tp}, pp {parallel.pp}: at least {memory.peak / GIB:,.0f} of {machine.usable / GIB:,.0f} GiB on "
        f"the {found.where} stage, in {phase}; most of it {largest}, {parts[largest] / GIB:,.0f} GiB"
    )


def _divisors(number: int) -> list[int]:
    return [candidate for candidate in range(1, number + 1) if number % candidate == 0]
