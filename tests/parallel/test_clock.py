"""The stopwatch of a step: parts exclude each other and add up; a device is never waited for."""

import contextlib
import time
from dataclasses import dataclass, field

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from parallel import topology as topologies
from parallel.clock import PARTS, SILENT, DeviceClock, HostClock, timed
from tests.distributed import spawn
from tests.layouts import VOCAB, RandomSamples, config, judged_update
from training.batches import Batches
from training.build import build_trainer


class Hands:
    """A time that moves when told."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def spent(lap: dict | None) -> dict:
    assert lap is not None
    return {part: seconds for part, seconds in lap.items() if seconds}


def test_each_second_is_charged_to_the_innermost_part() -> None:
    hands = Hands()
    clock = HostClock(hands)
    hands.now += 1
    with clock.part("backward"):
        hands.now += 2
        with clock.part("communication"):
            hands.now += 4
        hands.now += 8
    with contextlib.suppress(KeyError), clock.part("data"), clock.part("monitoring"):
        hands.now += 16
        raise KeyError
    assert spent(clock.lap()) == {"other": 1, "backward": 10, "communication": 4, "monitoring": 16}
    hands.now += 32
    assert spent(clock.lap()) == {"other": 32}


def test_a_silent_clock_changes_nothing() -> None:
    with SILENT.part("forward"):
        assert SILENT.lap() is None
    assert timed(SILENT, "forward", spent) is spent


@dataclass
class Queue:
    """A device that works off what it was given when told to."""

    now: float = 0.0
    done: float = 0.0


@dataclass
class Mark:
    queue: Queue
    at: float = field(default=-1.0)

    def record(self) -> None:
        self.at = self.queue.now

    def query(self) -> bool:
        return self.at <= self.queue.done

    def elapsed_time(self, end_event: "Mark") -> float:
        assert end_event.query(), "reading it would raise"
        return (end_event.at - self.at) * 1000


def test_a_device_is_read_a_lap_later_and_never_waited_for() -> None:
    queue, made = Queue(), []

    def make() -> Mark:
        made.append(Mark(queue))
        return made[-1]

    clock = DeviceClock(make)

    def step(forward: float, behind: float = 0.0) -> dict | None:
        queue.now += 1
        with clock.part("forward"):
            queue.now += forward
            with clock.part("communication"):
                queue.now += 0.5
        queue.done = queue.now - behind
        return clock.lap()

    assert step(5) is None
    clock.restart()
    assert step(10) is None, "the lap before the restart is nobody's"
    assert spent(step(20)) == {"other": 1, "forward": 10, "communication": 0.5}
    assert spent(step(30)) == {"other": 1, "forward": 20, "communication": 0.5}
    before = len(made)
    assert step(40, behind=60) is None  # the lap before is not through: its line does without
    assert spent(step(50)) == {"other": 1, "forward": 40, "communication": 0.5}
    assert len(made) == before, "events are used again"


class Reads(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        self.count += func is torch.ops.aten._local_scalar_dense.default
        return func(*args, **(kwargs or {}))


def split(cfg, timing: bool) -> tuple[dict, float, int]:  # type: ignore[no-untyped-def]
    """(a step's split, its wall time, host reads in it) on this rank, as `training.run` does it."""
    topology = topologies.start(cfg.parallel, "cpu", timed=timing)
    trainer = build_trainer(cfg, topology, VOCAB)
    batch = Batches(RandomSamples(cfg.training.sequence_length), cfg.training.global_batch_size, topology).step(0)

    def step() -> None:
        with trainer.engine.accumulate():
            trainer.pipeline.train(*batch)
            with topology.clock.part("refresh"):
                trainer.spectral.pull_back()
        judged_update(trainer, cfg, torch.zeros(2, dtype=torch.float64))

    step()
    topology.clock.lap()
    started = time.perf_counter()
    step()
    wall = time.perf_counter() - started
    lap = topology.clock.lap()
    with Reads() as reads:
        step()
    return lap or {}, wall, reads.count


LAYOUTS = {
    "one process": (1, {}, {"forward", "backward", "optimizer", "refresh"}),
    "tp 2": (2, {"tp": 2}, {"forward", "backward", "optimizer", "refresh", "communication"}),
    "tp 2, sequence parallel": (2, {"tp": 2, "sequence_parallel": True}, {"forward", "backward", "communication"}),
    "pp 2": (2, {"pp": 2}, {"forward", "backward", "pipeline_wait", "optimizer"}),
    "zbv": (2, {"pp": 2, "schedule": "zbv"}, {"forward", "backward", "pipeline_wait"}),
    "dp 2": (2, {"dp": 2}, {"forward", "backward", "communication", "optimizer"}),
}


@pytest.mark.parametrize("name", LAYOUTS)
def test_the_parts_of_a_step_add_up_to_it(name: str) -> None:
    world_size, parallel, there = LAYOUTS[name]
    cfg = config(
        world_size,
        parallel=parallel,
        model={"hidden_size": 64, "reparam": {"kind": "sigma"}},
        training={"sequence_length": 64},
    )
    (lap, wall, reads), *others = spawn(world_size, split, cfg, True)
    assert lap.keys() == set(PARTS)
    assert sum(lap.values()) == pytest.approx(wall, rel=0.02)
    assert {part for part in there if lap[part] <= 0} == set()
    assert lap["pipeline_wait"] == 0 or "pp" in parallel
    assert lap["communication"] == 0 or world_size > 1
    assert all(lap == {} for lap, _, _ in others), "only the logging rank keeps the time"
    if name == "one process":
        assert lap["backward"] > lap["forward"] > lap["other"]
        ((_, _, without),) = spawn(1, split, cfg, False)
        assert reads == without, "a clock reads no number of the device"
