"""Training steps in small layouts: what of a step is waiting for other ranks, what is ZeRO's, and how it scales."""

import os
import statistics
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
import torch.distributed as dist

from configs.checks import resolve
from configs.schema import Config
from parallel import topology as topologies
from parallel.gradients import sum_partial_gradients
from stability.guard import Guard
from tests.distributed import spawn
from training.build import build_trainer

VOCABULARY = 4096
TIMEOUT = 1800.0


@dataclass(frozen=True)
class Layout:
    """Ranks along each axis, and a decoder."""

    tp: int = 1
    pp: int = 1
    dp: int = 1
    zero_stage: int = 1
    width: int = 512
    layers: int = 4
    length: int = 256
    sequences: int = 8
    """Of one data-parallel rank."""

    @property
    def world_size(self) -> int:
        return self.tp * self.pp * self.dp

    def config(self) -> Config:
        fields = {
            "data": {"sources": [{"path": "unused"}]},
            "model": {"layers": self.layers, "hidden_size": self.width, "heads": self.width // 64},
            "parallel": {"tp": self.tp, "pp": self.pp, "dp": self.dp, "zero_stage": self.zero_stage},
            "training": {"steps": 1, "sequence_length": self.length, "global_batch_size": self.sequences * self.dp},
        }
        return resolve(Config.model_validate(fields), self.world_size)


@dataclass
class _Times:
    """Seconds of each step on one rank."""

    step: list[float] = field(default_factory=list)
    waiting: list[float] = field(default_factory=list)
    """In collectives and in sending and receiving, until they are done: the others' delay is in it."""
    reduction: list[float] = field(default_factory=list)
    update: list[float] = field(default_factory=list)


def measure(layout: Layout, steps: int) -> dict[str, Any]:
    """Medians over steps of the mean over ranks."""
    ranks = spawn(layout.world_size, partial(_rank, layout, steps), timeout=TIMEOUT)
    step = _median([times.step for times, _ in ranks])
    millions = sum(parameters for _, parameters in ranks) / len(ranks) / 1e6
    reduction, update = (_median([getattr(times, name) for times, _ in ranks]) for name in ("reduction", "update"))
    return {
        "tp": layout.tp,
        "pp": layout.pp,
        "dp": layout.dp,
        "zero": layout.zero_stage,
        "step_s": step,
        "tokens_per_s": layout.dp * layout.sequences * layout.length / step,
        "waiting": _median([times.waiting for times, _ in ranks]) / step,
        "reduction_ms_per_million": 1000 * reduction / millions,
        "update_ms_per_million": 1000 * update / millions,
        "millions_per_rank": millions,
    }


def _median(of_ranks: list[list[float]]) -> float:
    return statistics.median(statistics.mean(of_step) for of_step in zip(*of_ranks, strict=True))


def _rank(layout: Layout, steps: int) -> tuple[_Times, int]:
    """Two steps to warm up, then `steps` that are timed; this rank's times and its number of parameters."""
    cores = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {cores[dist.get_rank() % len(cores)]})
    config = layout.config()
    topology = topologies.start(config.parallel, "cpu")
    trainer = build_trainer(config, topology, VOCABULARY)
    guard = Guard(config.stability.skip, config.stability.zclip, config.optimizer.clip, topology.device)
    window_BT = torch.randint(VOCABULARY, (layout.sequences, layout.length + 1))
    tokens_BT, targets_BT = window_BT[:, :-1].contiguous(), window_BT[:, 1:].contiguous()
    times = _Times()
    with _waiting() as waited:
        for _ in range(steps + 2):
            dist.barrier()
            waited.clear()
            started = time.perf_counter()
            with trainer.engine.accumulate():
                loss = trainer.pipeline.train(tokens_BT, targets_BT)
                sum_partial_gradients(trainer.parameters(), topology.tensor)
                trainer.spectral.pull_back()
                accumulated = time.perf_counter()
            reduced = time.perf_counter()
            totals_N = torch.stack([loss.double(), torch.zeros((), dtype=torch.float64)])
            trainer.engine.step(config.optimizer.lr, partial(guard.judge, totals_N))
            updated = time.perf_counter()
            trainer.spectral.refresh()
            times.step.append(time.perf_counter() - started)
            times.waiting.append(sum(waited))
            times.reduction.append(reduced - accumulated)
            times.update.append(updated - reduced)
    parameters = sum(parameter.numel() for parameter in trainer.parameters())
    warm = {name: values[2:] for name, values in vars(times).items()}
    return _Times(**warm), parameters


@contextmanager
def _waiting() -> Iterator[list[float]]:
    """Seconds of each wait for a collective, a send or a receive: all of torch's end in `Work.wait`."""
    waits: list[float] = []
    original = dist.Work.wait

    def wait(work: dist.Work, *arguments: Any, **options: Any) -> Any:
        started = time.perf_counter()
        try:
            return original(work, *arguments, **options)
        finally:
            waits.append(time.perf_counter() - started)

    dist.Work.wait = wait  # type: ignore[method-assign]
    try:
        yield waits
    finally:
        dist.Work.wait = original  # type: ignore[method-assign]
