"""Runs of made-up steps, and what a detector says of them.

Shapes: S measured steps, L layers, A heads, M matrices, P tensor-parallel ranks.
"""

import json
from collections.abc import Callable, Sequence

import numpy as np

from stability.alarms import Alarm
from stability.detectors import Detector, Observation


def steps(
    loss: Sequence[float] | np.ndarray, grad_norm: Sequence[float] | np.ndarray | None = None
) -> list[Observation]:
    """Steps from 1 with these losses and norms, none of them measured."""
    norms = np.ones(len(loss)) if grad_norm is None else grad_norm
    return [Observation(step, *map(float, pair)) for step, pair in enumerate(zip(loss, norms, strict=True), start=1)]


def measured(interval: int = 10, **arrays: np.ndarray) -> list[Observation]:
    """Measured steps 10, 20, ... whose arrays are the rows of these (S, ...); `matrix` names those of M."""
    length = len(next(iter(arrays.values())))
    names = (
        {"matrix": np.array([f"layers.{m}.weight" for m in range(shape[1])])}
        if (shape := next((a.shape for key, a in arrays.items() if key in ("grad_norm", "shard_rms")), None))
        else {}
    )
    return [
        Observation(interval * (row + 1), 2.0, 1.0, arrays={key: a[row] for key, a in arrays.items()} | names)
        for row in range(length)
    ]


def alarms_of(detector: Detector, seen: Sequence[Observation]) -> list[Alarm]:
    """All alarms of a run, without any cooldown."""
    return [alarm for observation in seen for alarm in detector.observe(observation)]


def assert_same_after_a_resume(build: Callable[[], Detector], seen: Sequence[Observation]) -> None:
    """At whatever step a run is split, its second part raises the alarms that it raised in one go."""
    straight, states, alarms = build(), [], []
    for observation in seen:
        states.append(json.dumps(straight.state()))
        alarms.append([repr(alarm) for alarm in straight.observe(observation)])
    assert any(alarms), "a run without alarms proves nothing"
    for first, state in enumerate(states):
        resumed = build()
        resumed.load(json.loads(state))
        assert [[repr(alarm) for alarm in resumed.observe(o)] for o in seen[first:]] == alarms[first:], first
        assert json.dumps(resumed.state()) == json.dumps(straight.state())
