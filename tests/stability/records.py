"""Records made by hand: a healthy run with some noise, to which one fault is done."""

from collections.abc import Callable

import numpy as np

from stability.alarms import Alarm
from stability.record import Header, Place, Record, Track
from tests.layouts import config

STEPS, LAYERS, HEADS = 40, 3, 4
PARAMETERS = [f"layers.{i}.{part}.weight" for i in range(LAYERS) for part in ("attention.qkv.q", "feedforward.up")]
MATRICES = [name.removesuffix(".weight") for name in PARAMETERS]
MEASURED = 10  # of the steps, evenly

Arrays = dict[str, np.ndarray]


def healthy(dp: int = 1, tp: int = 1, seed: int = 0) -> Arrays:
    """Arrays of a run that nothing happens to; rank r is (tp, dp) = (r mod tp, r // tp)."""
    rng = np.random.default_rng(seed)

    def noisy(value: float, *shape: int, sd: float = 0.1) -> np.ndarray:
        return value * np.exp(sd * rng.standard_normal(shape))

    return {
        "loss": 3 + 0.02 * rng.standard_normal(STEPS) - 0.01 * np.arange(STEPS),
        "grad_norm": noisy(1.0, STEPS),
        "lr": np.full(STEPS, 1e-3),
        "kept": np.ones(STEPS, bool),
        "batch": np.arange(STEPS),
        "gradient": noisy(0.1, STEPS, dp * tp, len(PARAMETERS)),
        "sigma": noisy(2.0, STEPS, len(MATRICES), sd=0.002),
        "gamma": noisy(1.0, STEPS, len(MATRICES), sd=0.002),
        "measured.entropy": noisy(3.0, MEASURED, LAYERS, HEADS, sd=0.005),
        "measured.head_grad": noisy(0.01, MEASURED, LAYERS, HEADS),
        "measured.shard_rms": noisy(0.02, MEASURED, len(MATRICES), tp, sd=0.0005),
        "measured.token_cosine": noisy(0.3, MEASURED, LAYERS, sd=0.01),
        "measured.tev": noisy(0.02, MEASURED, sd=0.01),
    }


def record(
    fault: Callable[[Arrays], object] = lambda arrays: None, *, dp: int = 1, tp: int = 1, step: int = 36, seed: int = 0
) -> Record:
    """A record of steps 101 to 140 with an alarm at the step-th of them, after `fault` was done to its arrays."""
    arrays = healthy(dp, tp, seed)
    fault(arrays)
    every, some = np.arange(101, 101 + STEPS), 101 + np.arange(3, STEPS, STEPS // MEASURED)
    tracks = {name: Track(some if name.startswith("measured.") else every, a) for name, a in arrays.items()}
    return Record(
        Header(
            id=f"{100 + step:06d}-loss_spike",
            run="made",
            written=0.0,
            alarms=[Alarm("loss_spike", 100 + step, "alarm", "loss far above its mean", 5.0, 3.2)],
            config=config(dp * tp, parallel={"tp": tp}, model={"layers": LAYERS}).model_dump(mode="json"),
            config_digest="",
            data_fingerprint="",
            ranks=[Place(r, f"node{r}", "cpu", r % tp, 0, r // tp) for r in range(dp * tp)],
            versions={},
            seed=0,
            random_states=[""] * (dp * tp),
        ),
        tracks,
        {
            "parameter": np.array(PARAMETERS),
            "holds": np.ones((dp * tp, len(PARAMETERS)), bool),
            "matrix": np.array(MATRICES),
            "measured.matrix": np.array(MATRICES),
        },
    )
