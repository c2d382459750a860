"""Pipeline schedules on real ranks: how long their parts take, and for how much of a step a rank has nothing to do."""

import os
import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.pipelining import PipelineStage

from benchmarks.harness import quartiles
from benchmarks.parallel_overheads.stages import ComputingChunk, SleepingChunk, mean_square
from configs.schema import ParallelConfig
from parallel import topology as topologies
from parallel.bubble import StageTimes, bubble_fraction
from parallel.pipeline import Pipeline, stage_indices
from tests.distributed import spawn

CHUNKS = {"gpipe": 1, "1f1b": 1, "interleaved_1f1b": 2, "interleaved_zero_bubble": 2, "zbv": 2}
TIMEOUT = 1800.0


@dataclass(frozen=True)
class Cell:
    """A pipeline to be measured."""

    schedule: str
    pp: int
    micro_batches: int
    unit: float
    """Seconds of a sleeping rank's forward of a micro-batch; both parts of its backward take the same. 0: compute."""
    width: int = 1024
    sequences: int = 4
    length: int = 128
    depth: int = 4
    """Layers of a computing rank."""

    @property
    def chunks(self) -> int:
        return CHUNKS[self.schedule]

    def build(self, stage: int) -> torch.nn.Module:
        part = self.unit / self.chunks
        if part:
            return SleepingChunk(stage, 8, StageTimes(part, part, part))
        return ComputingChunk(stage, self.width, self.depth // self.chunks)


def measure(cell: Cell, steps: int) -> dict[str, Any]:
    """A row of the table: the bubble of a step as measured, and as theory has it of the parts' measured times."""
    ranks = spawn(cell.pp, partial(_rank, cell, steps), timeout=TIMEOUT)
    spans = [max(r["ends"][i] for r in ranks) - min(r["starts"][i] for r in ranks) for i in range(steps)]
    busy = [statistics.mean(r["busy"][i] for r in ranks) for i in range(steps)]
    bubbles = [1 - work / span for work, span in zip(busy, spans, strict=True)]
    times = _part_times([r["parts"] for r in ranks])
    shape = (cell.schedule, cell.pp, cell.chunks, cell.micro_batches)
    theory, measured = bubble_fraction(*shape, times), statistics.median(bubbles)
    part = cell.unit / cell.chunks
    ideal = 3 * part * cell.chunks * cell.micro_batches
    return {
        "schedule": cell.schedule,
        "stages": "sleep" if cell.unit else "compute",
        "pp": cell.pp,
        "micro_batches": cell.micro_batches,
        "step_s": statistics.median(spans),
        "measured": measured,
        "quartiles": quartiles(bubbles),
        "best": min(bubbles),
        "theory": theory,
        "off": measured / theory - 1,
        # Against the time that was asked for: what waking up late and torch's own work take counts as idle too.
        "measured_of_ideal": 1 - ideal / statistics.median(spans) if part else None,
        "theory_of_ideal": bubble_fraction(*shape, StageTimes(part, part, part)) if part else None,
        "parts_ms": [1000 * x for x in (times.forward, times.backward_input, times.backward_weight)],
    }


def _part_times(parts: list[dict[str, list[float]]]) -> StageTimes:
    """Mean seconds of each part over all ranks. Whole backwards are given as if all of them were of the input."""
    joined: dict[str, list[float]] = defaultdict(list)
    for of_rank in parts:
        for kind, seconds in of_rank.items():
            joined[kind] += seconds
    mean = {kind: statistics.mean(seconds) for kind, seconds in joined.items()}
    if "B" in mean:
        return StageTimes(mean["F"], mean["B"], 0.0)
    return StageTimes(mean["F"], mean["I"], mean["W"])


def _rank(cell: Cell, steps: int) -> dict[str, Any]:
    """Run one warm-up and `steps` steps on this rank; when each began and ended, and what of it was work."""
    cores = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {cores[dist.get_rank() % len(cores)]})
    parallel = ParallelConfig.model_validate({"pp": cell.pp, "dp": 1, "schedule": cell.schedule})
    topology = topologies.start(parallel, "cpu")
    chunks = [cell.build(stage) for stage in stage_indices(parallel, topology.pp_rank)]
    shape = (1, 4, 8) if cell.unit else (cell.sequences, cell.length, cell.width)
    clock = _Clock()
    pipeline = Pipeline(
        chunks,
        clock.of("F", mean_square, counted=False),
        mean_square,
        topology,
        parallel,
        micro_batches=cell.micro_batches,
        hidden_shape=shape,
        logits_shape=shape,
        dtype=torch.float32,
    )
    tokens_BT = torch.ones(cell.micro_batches * shape[0], shape[1], dtype=torch.long)
    starts, ends, busy = [], [], []
    with clock.watching():
        for step in range(steps + 1):
            if step == 1:
                clock.parts.clear()
            before = clock.busy
            dist.barrier()
            starts.append(time.perf_counter())
            pipeline.train(tokens_BT, tokens_BT)
            ends.append(time.perf_counter())
            busy.append(clock.busy - before)
    return {"starts": starts[1:], "ends": ends[1:], "busy": busy[1:], "parts": dict(clock.parts)}


class _Clock:
    """The seconds that this rank spends in its stages' own work, none of it waiting for others."""

    def __init__(self) -> None:
        self.busy = 0.0
        self.parts: dict[str, list[float]] = defaultdict(list)

    def of(self, kind: str, function: Callable[..., Any], *, counted: bool = True) -> Callable[..., Any]:
        """The function, timed; `counted` as one part of this kind."""

        def timed(*arguments: Any, **options: Any) -> Any:
            started = time.perf_counter()
            try:
                return function(*arguments, **options)
            finally:
                seconds = time.perf_counter() - started
                self.busy += seconds
                part = kind if options.get("full_backward", True) else "I"
                # torch leaves a split backward of the first stage, whose input needs no gradient, to its W altogether.
                if counted and not (part in "IW" and arguments[0].stage_index == 0):
                    self.parts[part].append(seconds)

        return timed

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Inside, torch's stages report what they do."""
        names = {"forward_one_chunk": "F", "backward_one_chunk": "B", "backward_weight_one_chunk": "W"}
        originals = {name: getattr(PipelineStage, name) for name in names}
        for name, kind in names.items():
            setattr(PipelineStage, name, self.of(kind, originals[name]))
        try:
            yield
        finally:
            for name, original in originals.items():
                setattr(PipelineStage, name, original)
