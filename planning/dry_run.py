"""One rank of a job of any size, built here without memory: its groups, its shards, its schedule, what it holds.

The parts are the real ones: `topology.start`, `build_chunks`, `Pipeline` with torch's schedule, under process groups
that talk to nobody (`planning.fake`). What is found is held against what the layout says, written down once more here.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch._subclasses.fake_tensor import FakeTensorMode

from configs.schema import SINGLE_STAGE, Config
from model.decoder import Decoder
from model.flops import layer_parameters
from parallel import topology as topologies
from parallel.bubble import (
    BACKWARD_INPUT,
    BACKWARD_WEIGHT,
    FORWARD,
    FULL_BACKWARD,
    Action,
    StageTimes,
    rank_actions,
    step_time,
)
from parallel.embedding import count_rows
from parallel.pipeline import Pipeline
from parallel.topology import Topology
from planning.alive import size_of, tensor_bytes
from planning.fake import fake_ranks
from planning.memory import FP32, held_by, hidden_bytes, micro_batches, stages_of
from planning.profile import Profiler
from training.build import build_chunks, build_pipeline


@dataclass(frozen=True)
class DryRun:
    """What was built and found right; a failed check has raised."""

    rank: int
    world_size: int
    tp_rank: int
    dp_rank: int
    pp_rank: int
    tensor_ranks: list[int]
    data_ranks: list[int]
    pipeline_ranks: list[int]
    stages: list[int]
    layers: list[int]
    parameters: int
    held_bytes: int
    """Of parameters and buffers."""
    actions: list[str]
    """In order; `3F0`: forward of micro-batch 0 on stage 3 (I, W: the two parts of a backward, B: both)."""
    messages: int
    """Sent by this rank in a step."""


class Mismatch(AssertionError):
    """What was built is not what the layout says: a mistake of the program, not of the user."""


def _uncompiled(config: Config) -> Config:
    """Tensors without memory cannot be given to compiled code."""
    return config.model_copy(update={"training": config.training.model_copy(update={"compile": False})})


def dry_run(config: Config, vocab_size: int, rank: int) -> DryRun:
    """Build and check one rank of a resolved configuration. Raises Mismatch."""
    parallel = config.parallel
    assert parallel.dp is not None
    world_size = parallel.tp * parallel.pp * parallel.dp
    with fake_ranks(world_size, rank):
        topology = topologies.start(parallel, "cpu")
        groups = _check_groups(topology, config, rank)
        with FakeTensorMode():
            chunks = build_chunks(_uncompiled(config), topology, vocab_size)
            pipeline = build_pipeline(config, topology, chunks, vocab_size)
            layers = _check_shards(chunks, config, topology, vocab_size)
            held = _check_memory(chunks, config, topology, vocab_size)
            _check_forward(chunks, config, topology, vocab_size)
        actions = _check_schedule(config, topology.pp_rank, pipeline)
    return DryRun(
        rank,
        world_size,
        topology.tensor.rank,
        topology.dp_rank,
        topology.pp_rank,
        *groups,
        stages=[stage.index for stage in stages_of(config, topology.pp_rank)],
        layers=layers,
        parameters=sum(p.numel() for chunk in chunks for p in chunk.parameters()),
        held_bytes=held,
        actions=[f"{stage}{kind}{micro_batch}" for kind, stage, micro_batch in actions],
        messages=sum(_sends(action, config) for action in actions),
    )


def _require(right: bool, message: str) -> None:
    if not right:
        raise Mismatch(message)


def _check_groups(topology: Topology, config: Config, rank: int) -> tuple[list[int], list[int], list[int]]:
    """Tensor-parallel ranks are neighbours, data-parallel ranks tp apart, pipeline ranks tp x dp apart."""
    tp, pp, dp = config.parallel.tp, config.parallel.pp, config.parallel.dp or 1
    expected = (
        [rank - rank % tp + i for i in range(tp)],
        [rank - rank % (tp * dp) + rank % tp + i * tp for i in range(dp)],
        [rank % (tp * dp) + i * tp * dp for i in range(pp)],
    )
    groups = (topology.tensor.group, topology.dp_group, topology.pp_group)
    for name, group, ranks in zip(("tensor", "data", "pipeline"), groups, expected, strict=True):
        found = dist.get_process_group_ranks(group)
        _require(found == ranks, f"rank {rank}: {name}-parallel ranks are {found}, not {ranks}")
    return expected


def _check_shards(chunks: Sequence[Decoder], config: Config, topology: Topology, vocab_size: int) -> list[int]:
    """The layers are those of this rank's stages, and its shards times tp the whole of each matrix."""
    model, tp = config.model, config.parallel.tp
    stages = stages_of(config, topology.pp_rank)
    expected = [
        layer for stage in stages for layer in range(stage.index * stage.layers, (stage.index + 1) * stage.layers)
    ]
    layers = [int(index) for chunk in chunks for index in chunk.layers]
    _require(layers == expected, f"layers are {layers}, not {expected}")
    for chunk, stage in zip(chunks, stages, strict=True):
        ends = (chunk.embedding is not None, chunk.is_last)
        _require(ends == (stage.first, stage.last), f"stage {stage.index} has embedding, head: {ends}")
        matrices = {n: p for n, p in chunk.named_parameters() if p.ndim == 2}
        here = sum(p.numel() for name, p in matrices.items() if name.startswith("layers."))
        whole = layer_parameters(model) * stage.layers
        _require(here * tp == whole, f"stage {stage.index}: {here:,} x {tp} numbers in matrices, not {whole:,}")
        rows = count_rows(vocab_size, model.vocab_multiple)
        for name in ("embedding.weight", "head.weight"):
            if name in matrices:
                shape = (rows // tp, model.hidden_size)
                _require(tuple(matrices[name].shape) == shape, f"{name} is {tuple(matrices[name].shape)}, not {shape}")
    return layers


def _check_memory(chunks: Sequence[Decoder], config: Config, topology: Topology, vocab_size: int) -> int:
    """Parameters and buffers take the bytes that the plan says."""
    group = topology.tensor.group
    assert group is not None
    profiler = Profiler(config, vocab_size, {config.parallel.tp: group})
    profile = profiler.profile(config.parallel.tp, config.parallel.sequence_parallel, config.training.recompute)
    held = held_by(config, profile, topology.pp_rank)
    planned = FP32 * held.numbers + held.effective + held.spectral + held.tables
    tensors = [t for chunk in chunks for t in (*chunk.parameters(), *chunk.buffers())]
    found = tensor_bytes(tensors)
    _require(found == planned, f"parameters and buffers take {found:,} bytes; the plan says {planned:,.0f}")
    return found


def _check_forward(chunks: Sequence[Decoder], config: Config, topology: Topology, vocab_size: int) -> None:
    """A micro-batch goes through every chunk and comes out with the shape that the next stage has a buffer for."""
    training, tp = config.training, topology.tensor
    assert training.micro_batch_size is not None
    sequences, length, width = training.micro_batch_size, training.sequence_length, config.model.hidden_size
    here = length // tp.size if tp.sequence_parallel else length
    dtype = torch.bfloat16 if training.precision == "bf16" else torch.float32
    hidden_BtD = torch.zeros(sequences, here, width, dtype=dtype)
    _require(size_of(hidden_BtD) == hidden_bytes(config), "a hidden state has other bytes than the plan says")
    rows = count_rows(vocab_size, config.model.vocab_multiple) // tp.size
    for chunk in chunks:
        with torch.no_grad():
            x = torch.zeros(sequences, length, dtype=torch.long) if chunk.embedding is not None else hidden_BtD
            y = chunk(x)
        shape = (sequences, length, rows) if chunk.is_last else tuple(hidden_BtD.shape)
        _require(tuple(y.shape) == shape and y.dtype == dtype, f"a chunk gives {tuple(y.shape)}, not {shape}")


def _check_schedule(config: Config, pp_rank: int, pipeline: Pipeline) -> list[Action]:
    """Every micro-batch goes forward and backward once through each stage, and every message is waited for."""
    parallel, count = config.parallel, micro_batches(config)
    if parallel.pp == 1:
        return [(kind, 0, micro_batch) for micro_batch in range(count) for kind in (FORWARD, FULL_BACKWARD)]
    ranks = rank_actions(parallel.schedule, parallel.pp, parallel.chunks, count)
    seen = Counter(action for actions in ranks for action in actions)
    for stage in range(parallel.pp * parallel.chunks):
        for micro_batch in range(count):
            kinds = {kind: seen[kind, stage, micro_batch] for kind in "FBIW"}
            split = kinds[BACKWARD_INPUT] + kinds[BACKWARD_WEIGHT]
            once = kinds[FORWARD] == 1 and (kinds[FULL_BACKWARD], split) in ((1, 0), (0, 2))
            _require(once, f"stage {stage}, micro-batch {micro_batch}: {kinds}")
    step_time(parallel.schedule, parallel.pp, parallel.chunks, count, StageTimes(1.0, 1.0, 1.0))  # asserts no deadlock
    if parallel.schedule not in SINGLE_STAGE:
        _check_torch(ranks, pipeline, pp_rank)
    return ranks[pp_rank]


def _check_torch(ranks: Sequence[Sequence[Action]], pipeline: Pipeline, pp_rank: int) -> None:
    """What torch's schedule object will do on this rank is that list, and each of its sends has a receive elsewhere."""
    schedule = pipeline._schedule
    assert schedule is not None
    order = [(a[1].value, a[0], a[2]) for a in schedule.pipeline_order[pp_rank] if a is not None]
    _require(order == list(ranks[pp_rank]), "torch's schedule has another order of actions")
    comms = Counter((a[1].value, a[0], a[2]) for rank in schedule.pipeline_order_with_comms.values() for a in rank)
    for (kind, stage, micro_batch), sent in comms.items():
        if kind in ("SEND_F", "SEND_B"):
            receive = (kind.replace("SEND", "RECV"), stage + (1 if kind == "SEND_F" else -1), micro_batch)
            _require(comms[receive] == sent, f"{kind} of stage {stage}, micro-batch {micro_batch}: nobody receives it")


def _sends(action: Action, config: Config) -> int:
    """Messages to other ranks that follow an action."""
    kind, stage, _ = action
    last, rank_of = config.parallel.pp * config.parallel.chunks - 1, _rank_of(config)
    target = {FORWARD: stage + 1, FULL_BACKWARD: stage - 1, BACKWARD_INPUT: stage - 1}.get(kind)
    return int(target is not None and 0 <= target <= last and rank_of[target] != rank_of[stage])


def _rank_of(config: Config) -> dict[int, int]:
    return {stage.index: rank for rank in range(config.parallel.pp) for stage in stages_of(config, rank)}
