"""Rank collapse while a post-LN model trains at a learning rate that it does not bear, and what two remedies do."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from configs.load import load
from configs.schema import Config
from data.manifest import SPLITS
from data.samples import Samples
from examples.training import train
from monitoring.recorder import read_events, read_signals, read_summary

CONFIG = Path(__file__).with_name("post-ln.yaml")
SETTINGS = {
    "post-LN": (),
    "post-LN, 1/sqrt(L)": ("model.residual.kind=depth",),
    "post-LN, sigmaReparam": ("model.reparam.kind=sigma",),
}
"""What each run overrides."""


@dataclass(frozen=True)
class Trained:
    """One run. S measured steps, L layers."""

    name: str
    steps_S: NDArray[np.int64]
    cosine_SL: NDArray[np.float64]
    """Mean cosine of two different tokens of a sequence."""
    entropy_SL: NDArray[np.float64]
    """Attention entropy, mean over heads, as a share of its causal maximum."""
    gradient_ratio_SL: NDArray[np.float64]
    """Norm of dL/dW_Q over that of dL/dW_V."""
    val_loss: float
    alarms: tuple[str, ...]

    def json(self) -> dict[str, Any]:
        """What the run came to."""
        return {
            "name": self.name,
            "steps": int(self.steps_S[-1]),
            "token_cosine": self.cosine_SL[-1].tolist(),
            "entropy_ratio": self.entropy_SL[-1].tolist(),
            "qk_grad_ratio": self.gradient_ratio_SL[-1].tolist(),
            "val_loss": self.val_loss,
            "alarms": list(self.alarms),
        }


def train_all(data: Path, folder: Path) -> list[Trained]:
    """A run for each of `SETTINGS`, in `folder`."""
    runs = []
    for number, (name, overrides) in enumerate(SETTINGS.items()):
        run_dir = train(CONFIG, data, folder / f"run-{number}", *overrides)
        steps_S, cosine_SL = read_signals(run_dir, "token_cosine")
        _, entropy_SLA = read_signals(run_dir, "entropy_ratio")
        _, ratio_SL = read_signals(run_dir, "qk_grad_ratio")
        summary = read_summary(run_dir)
        assert summary is not None, "a run that ended has a summary"
        alarms = [
            f"step {event['step']}: {event['reason']}" for event in read_events(run_dir) if event["kind"] == "alarm"
        ]
        runs.append(
            Trained(name, steps_S, cosine_SL, entropy_SLA.mean(-1), ratio_SL, summary["val_loss"], tuple(alarms))
        )
    return runs


def unigram_loss(data: Path) -> float:
    """Loss, in nats, of a model that knows how frequent each byte is in training and nothing of the context.

    On the validation sequences that the runs are judged by.
    """
    config: Config = load(CONFIG, [f"data.sources=[{{path: {data}}}]"])
    length, count = config.training.sequence_length, config.training.eval_samples
    seen, judged = (Samples(config.data.sources, split, length, config.training.seed) for split in SPLITS)
    frequency = np.bincount(np.concatenate([seen[k][1:] for k in range(20_000)]), minlength=seen.vocab_size) + 1
    log_p = np.log(frequency / frequency.sum())
    return float(-np.mean([log_p[judged[k][1:]].mean() for k in range(count)]))
