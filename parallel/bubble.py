"""How long a pipeline schedule takes, and how much of that its ranks idle, from the times of its parts.

The real order of actions of every rank (torch's own lists, where torch makes them) runs against a clock: an action
starts when its rank is free and its input has come. That is exact for any schedule and any times; where the literature
has a closed form, `tests/parallel/test_bubble.py` holds both to be the same.

Sources: Narayanan et al. 2021 (arXiv 2104.04473), section 2.2, for GPipe, 1F1B and interleaving; Qi et al. 2023
(arXiv 2401.10241) for the zero-bubble schedules.
"""

from dataclasses import dataclass
from functools import lru_cache
from types import SimpleNamespace
from typing import Any

from parallel.pipeline import SCHEDULES, V_SHAPED

FORWARD, FULL_BACKWARD, BACKWARD_INPUT, BACKWARD_WEIGHT = "F", "B", "I", "W"
NOTHING = -1


@dataclass(frozen=True)
class StageTimes:
    """Seconds (or any unit) that one chunk of the model takes for one micro-batch; all chunks take the same."""

    forward: float
    backward_input: float
    """The gradient of the chunk's input."""
    backward_weight: float
    """The gradient of its parameters. Schedules that do not split the backward take both at once, one after another."""
    send: float = 0.0
    """From one rank to the next, beside computation; chunks of one rank hand over for nothing."""

    @property
    def total(self) -> float:
        return self.forward + self.backward_input + self.backward_weight


# (kind, stage, micro-batch); the kinds are F, B (the whole backward), I (of the input) and W (of the weights). Plain
# tuples here and below: 64 ranks with 512 micro-batches have 200,000 of them.
Action = tuple[str, int, int]
# (kind, result that it needs, result that it gives, whether that goes to another rank); results have numbers.
Task = tuple[str, int, int, bool]


def bubble_fraction(schedule: str, pp: int, chunks: int, micro_batches: int, times: StageTimes) -> float:
    """The part of a step in which a rank idles, mean over the `pp` ranks: 1 - work of a rank / `step_time`.

    `chunks` per rank, `times` per chunk and micro-batch. Where sending takes no time this is, for m micro-batches,

    - GPipe and 1F1B: (pp - 1) / (m + pp - 1);
    - interleaved 1F1B, m a multiple of pp: (pp - 1) / (chunks m + pp - 1);

    and where I >= W a rank of `interleaved_zero_bubble` idles for (pp - 1) (F + I - W) per step. The zero-bubble
    schedules have a bubble all the same: a step ends with its last rank, while the name speaks of ranks that begin the
    next step before that. The rules of `step_time` hold.
    """
    work = micro_batches * chunks * times.total
    return 1 - work / step_time(schedule, pp, chunks, micro_batches, times)


def step_time(schedule: str, pp: int, chunks: int, micro_batches: int, times: StageTimes) -> float:
    """The time from the first forward to the end of the last backward of any rank, in the unit of `times`.

    The optimizer is no part of it. `schedule`, `chunks` and `micro_batches` are such as `configs.checks` lets through.
    """
    if pp == 1:
        return micro_batches * chunks * times.total
    seconds = {
        FORWARD: times.forward,
        BACKWARD_INPUT: times.backward_input,
        BACKWARD_WEIGHT: times.backward_weight,
        FULL_BACKWARD: times.backward_input + times.backward_weight,
    }
    ranks = [
        [(seconds[kind], needs, gives, times.send if remote else 0.0) for kind, needs, gives, remote in tasks]
        for tasks in _tasks(schedule, pp, chunks, micro_batches)
    ]
    return _run(ranks, results=2 * pp * chunks * micro_batches)


def rank_actions(schedule: str, pp: int, chunks: int, micro_batches: int) -> list[list[Action]]:
    """What every rank does, in order, without the sending and receiving."""
    if schedule in ("gpipe", "1f1b"):
        warm_up = {"gpipe": [micro_batches] * pp, "1f1b": [min(micro_batches, pp - rank) for rank in range(pp)]}
        return [_one_stage(rank, count, micro_batches) for rank, count in enumerate(warm_up[schedule])]
    maker = _list_maker(pp, chunks, micro_batches)
    lists = (SCHEDULES[schedule]._calculate_single_rank_operations(maker, rank) for rank in range(pp))
    return [[(action[1].value, action[0], action[2]) for action in actions if action is not None] for actions in lists]


def _one_stage(stage: int, warm_up: int, micro_batches: int) -> list[Action]:
    """GPipe and 1F1B as torch runs them: `warm_up` forwards, then a backward and a forward in turn, then backwards.

    (torch's `pipeline_order` of 1F1B is a drawing: it counts the last rank's micro-batches from 1.)
    """
    actions: list[Action] = [(FORWARD, stage, micro_batch) for micro_batch in range(warm_up)]
    for micro_batch in range(micro_batches):
        actions.append((FULL_BACKWARD, stage, micro_batch))
        if warm_up + micro_batch < micro_batches:
            actions.append((FORWARD, stage, warm_up + micro_batch))
    return actions


def _list_maker(pp: int, chunks: int, micro_batches: int) -> Any:
    """What torch's schedules look at when they make their lists; a real one would need process groups and stages."""
    rounds = max(1, micro_batches // pp)
    return SimpleNamespace(
        pp_group_size=pp,
        n_local_stages=chunks,
        num_stages=pp * chunks,
        number_of_rounds=rounds,
        microbatches_per_round=micro_batches // rounds,
        _n_microbatches=micro_batches,
    )


@lru_cache(maxsize=4)
def _tasks(schedule: str, pp: int, chunks: int, micro_batches: int) -> list[list[Task]]:
    """The actions of every rank with what they wait for: forward of stage s for that of s - 1, backward for s + 1."""
    assert schedule in SCHEDULES, schedule
    last, m = pp * chunks - 1, micro_batches
    turning_points = {pp - 1} if schedule in V_SHAPED else set()

    def task(action: Action) -> Task:
        kind, stage, micro_batch = action
        if kind == BACKWARD_WEIGHT:
            return kind, NOTHING, NOTHING, False
        if kind == FORWARD:
            needs = NOTHING if stage == 0 else (stage - 1) * m + micro_batch
            return kind, needs, stage * m + micro_batch, stage not in turning_points
        gradients = (last + 1) * m
        needs = NOTHING if stage == last else gradients + (stage + 1) * m + micro_batch
        return kind, needs, gradients + stage * m + micro_batch, stage - 1 not in turning_points

    return [[task(action) for action in actions] for actions in rank_actions(schedule, pp, chunks, micro_batches)]


def _run(ranks: list[list[tuple[float, int, int, float]]], results: int) -> float:
    """When the last rank is done: each goes on as far as its inputs are there, until none has anything left."""
    arrival: list[float | None] = [None] * results
    clocks, positions = [0.0] * len(ranks), [0] * len(ranks)
    going = True
    while going:
        going = False
        for rank, tasks in enumerate(ranks):
            clock, position = clocks[rank], positions[rank]
            while position < len(tasks):
                duration, needs, gives, send = tasks[position]
                if needs != NOTHING:
                    came = arrival[needs]
                    if came is None:
                        break
                    clock = max(clock, came)
                clock += duration
                if gives != NOTHING:
                    arrival[gives] = clock + send
                position += 1
            going = going or position > positions[rank]
            clocks[rank], positions[rank] = clock, position
    assert all(position == len(tasks) for position, tasks in zip(positions, ranks, strict=True)), "a deadlock"
    return max(clocks)
