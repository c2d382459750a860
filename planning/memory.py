"""Bytes of one rank over a training step: what it holds, and the most that forward, backward, reduction and update add.

Held always: weights, moments, effective weights and tables. The rest comes and goes; the step's peak is that of its
worst phase, not the sum. Parts and phases are those of `parallel.engine` (DeepSpeed's ZeRO over fp32 parameters) and of
torch's pipeline schedules; `benchmarks.plan_memory` holds them against the bytes of real runs.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

from configs.schema import Config
from parallel.bubble import BACKWARD_WEIGHT, FORWARD, FULL_BACKWARD, Action, rank_actions
from parallel.engine import REDUCE_BUCKET
from parallel.pipeline import stage_indices
from planning.profile import Held, Pass, Profile

FP32 = 4
MOMENTS = 2
"""Numbers that Adam keeps for each of the parameters; Muon keeps one for each of its matrices."""
UPDATE_COPIES = {"adamw": 0.0, "stable_adamw": 4.0, "muon": 3.0}
"""What an update needs beside gradient and weight, in copies of this rank's share of the parameters: fused AdamW works
in place; StableAdamW forms roots, ratios and steps; Muon whole matrices and their products."""


ROW_NUMBERS = 8
"""Of a row of attention on a measured step: entropy, spread, largest logit, and those that make the bound."""


@dataclass(frozen=True)
class Stage:
    """One model chunk of a pipeline rank."""

    index: int
    layers: int
    first: bool
    last: bool


@dataclass(frozen=True)
class Memory:
    """Bytes of one rank, by part. `peak` is what it needs."""

    weights: float
    moments: float
    effective: float
    """Weights in the compute dtype, u, v, sigma and other tables."""
    gradients: float
    in_flight: float
    """Activations kept for backward passes, of as many micro-batches as the schedule has in flight at most."""
    logits: float
    """What head and loss keep of one micro-batch."""
    passes: float
    """The most that activations, gradients and what a pass needs besides take together."""
    received: float
    """Buffers of torch's pipeline stages, one for every micro-batch and direction."""
    reduction: float
    """What averaging the gradients needs beside them."""
    update: float
    """What the optimizer needs beside weights and moments, gradients included."""
    monitor: float
    """Blocks of scores on measured steps, at the peak of a forward pass."""
    kept: float
    """Weights as they were, during SAM's second pass."""
    averaging: float
    """A bucket of gradients that SAM averages between its passes."""

    @property
    def held(self) -> float:
        """In all phases."""
        return self.weights + self.moments + self.effective + self.received

    @property
    def phases(self) -> dict[str, float]:
        """The most in each phase of a step."""
        return {
            "forward and backward": self.held + max(self._passes, self.gradients + self.kept + self.averaging),
            "reduction": self.held + self.gradients + self.reduction,
            "update": self.held + self.update,
        }

    @property
    def _passes(self) -> float:
        """With the monitor, which looks at the first of SAM's passes, or what is kept for the second."""
        return self.passes + max(self.monitor, self.kept)

    @property
    def peak(self) -> float:
        """In the worst phase."""
        return max(self.phases.values())


def stages_of(config: Config, pp_rank: int) -> list[Stage]:
    """The chunks of a pipeline rank, in model order; `config` is resolved."""
    count = config.parallel.pp * config.parallel.chunks
    layers = config.model.layers // count
    return [Stage(i, layers, i == 0, i == count - 1) for i in stage_indices(config.parallel, pp_rank)]


def micro_batches(config: Config) -> int:
    """Of one rank and step; `config` is resolved."""
    assert config.parallel.dp is not None and config.training.micro_batch_size is not None
    return config.training.global_batch_size // (config.parallel.dp * config.training.micro_batch_size)


def held_by(config: Config, profile: Profile, pp_rank: int) -> Held:
    """What all chunks of a pipeline rank hold."""
    held = Held()
    for stage in stages_of(config, pp_rank):
        held += profile.hold(stage.layers, first=stage.first, last=stage.last)
    return held


def rank_memory(config: Config, profile: Profile, pp_rank: int) -> Memory:
    """Of a rank of this pipeline rank; all its tensor- and data-parallel ranks need as much."""
    parallel, training = config.parallel, config.training
    assert parallel.dp is not None and training.micro_batch_size is not None
    stages, held = stages_of(config, pp_rank), held_by(config, profile, pp_rank)
    passes = {
        stage.index: profile.run(stage.layers, training.micro_batch_size, first=stage.first, last=stage.last)
        for stage in stages
    }
    gradients = {
        stage.index: FP32 * profile.hold(stage.layers, first=stage.first, last=stage.last).numbers for stage in stages
    }
    count = micro_batches(config)
    in_flight, most = _activations(_actions(config, pp_rank, count), passes, gradients)
    share = held.numbers / parallel.dp
    moments = MOMENTS * held.numbers - (held.hidden if config.optimizer.name == "muon" else 0)
    monitor = _monitor(config) if config.monitoring.interval else 0.0
    return Memory(
        weights=FP32 * held.numbers,
        moments=FP32 * moments / parallel.dp,
        effective=held.effective + held.spectral + held.tables,
        gradients=sum(gradients.values()),
        in_flight=in_flight,
        passes=most,
        logits=_logits(stages, profile, training.micro_batch_size),
        received=_received(config, stages, count),
        reduction=_reduction(held.numbers, share, parallel.dp, profile.largest if _ends(stages) else 0.0),
        update=FP32 * share * (2 + UPDATE_COPIES[config.optimizer.name]),
        monitor=monitor,
        kept=FP32 * held.numbers if config.optimizer.sam_rho else 0.0,
        averaging=_averaging(held.numbers, config),
    )


def _averaging(numbers: float, config: Config) -> float:
    """SAM goes up along the mean gradient of all data-parallel ranks: a copy of a bucket."""
    if not config.optimizer.sam_rho or config.parallel.dp == 1:
        return 0.0
    return FP32 * min(REDUCE_BUCKET, numbers)


def _ends(stages: Sequence[Stage]) -> bool:
    return any(stage.first or stage.last for stage in stages)


def _logits(stages: Sequence[Stage], profile: Profile, sequences: int) -> float:
    if not any(stage.last for stage in stages):
        return 0.0
    one = profile.run(1, sequences, first=False, last=True).kept
    return one - profile.run(1, sequences, first=False, last=False).kept


def _actions(config: Config, pp_rank: int, count: int) -> list[Action]:
    parallel = config.parallel
    if parallel.pp == 1:
        return [(kind, 0, micro_batch) for micro_batch in range(count) for kind in (FORWARD, FULL_BACKWARD)]
    # Beyond some rounds of the pipeline nothing new happens, except to GPipe, which keeps all.
    enough = count if parallel.schedule == "gpipe" else min(count, 4 * parallel.pp)
    return _rank_actions(parallel.schedule, parallel.pp, parallel.chunks, enough)[pp_rank]


_rank_actions = lru_cache(maxsize=8)(rank_actions)


def _activations(
    actions: Sequence[Action], passes: dict[int, Pass], gradients: dict[int, float]
) -> tuple[float, float]:
    """The most bytes of activations kept, and the most of these, gradients and a pass's own together.

    A stage's gradients come with its first backward pass, as its activations go. Schedules that split the backward
    keep a micro-batch until its second part.
    """
    alive, there, kept, most = 0.0, 0.0, 0.0, 0.0
    started = set[int]()
    for kind, stage, _ in actions:
        if kind == FORWARD:
            alive += passes[stage].kept
            kept = max(kept, alive)
            most = max(most, alive + there)
            continue
        most = max(most, alive + there + passes[stage].above)
        if kind in (FULL_BACKWARD, BACKWARD_WEIGHT):
            alive -= passes[stage].kept
            there += 0.0 if stage in started else gradients[stage]
            started.add(stage)
        most = max(most, alive + there)
    return kept, most


def hidden_bytes(config: Config) -> float:
    """A micro-batch between stages, on one rank."""
    training, parallel = config.training, config.parallel
    assert training.micro_batch_size is not None
    tokens = training.micro_batch_size * training.sequence_length
    width = 2 if training.precision == "bf16" else 4
    return tokens * config.model.hidden_size * width / (parallel.tp if parallel.sequence_parallel else 1)


def _received(config: Config, stages: Sequence[Stage], count: int) -> float:
    """Inputs and gradients of outputs: torch's stages keep a buffer for each of every micro-batch."""
    if config.parallel.pp == 1:
        return 0.0
    return hidden_bytes(config) * count * sum(2 - stage.first - stage.last for stage in stages)


def _reduction(numbers: float, share: float, dp: int, largest: float) -> float:
    """DeepSpeed moves gradients into a bucket, averages it by way of a copy, and moves this rank's share out.

    The bucket is allocated whole. Its first filling frees as many gradients as the copy needs; later the share is there
    too. A parameter larger than the bucket is copied whole.
    """
    if dp == 1:
        return FP32 * REDUCE_BUCKET
    filled = min(REDUCE_BUCKET, numbers)
    more = share if numbers > REDUCE_BUCKET else max(0.0, share - filled)
    return FP32 * (REDUCE_BUCKET + max(more, largest if largest > REDUCE_BUCKET else 0.0))


def _monitor(config: Config) -> float:
    """Attention statistics of one layer by the GPU's kernel (`monitoring.kernels.entropy`): queries and keys once more,
    the keys' running mean in fp32 on its way, and some numbers for each row."""
    training, parallel, model = config.training, config.parallel, config.model
    assert training.micro_batch_size is not None
    tokens = training.micro_batch_size * training.sequence_length
    width = 2 if training.precision == "bf16" else FP32
    queries, keys = (tokens * heads // parallel.tp for heads in (model.heads, model.key_value_heads))
    return queries * (model.head_size * width + FP32 * ROW_NUMBERS) + keys * model.head_size * (width + 3 * FP32)
