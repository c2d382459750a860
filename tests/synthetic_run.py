"""A run folder as training would leave it, without training."""

from pathlib import Path
from typing import Any

import numpy as np

from monitoring.recorder import Recorder, write_json

STEPS, INTERVAL, LAYERS, HEADS = 100, 10, 4, 4
FIRST = (2, 1, 30)
"""Layer, head and step of the first collapse in a collapsing run; layer 0 follows twenty steps later."""
NAMES = ["layers.0.attention.qkv.q", "layers.0.feedforward.up", "layers.1.feedforward.up", "head"]


def write_run(folder: Path, *, collapses: bool, steps: int = STEPS, planned: int = STEPS) -> Path:
    """A run of `steps` of the `planned` updates, measured every tenth; returns its folder."""
    rng = np.random.default_rng(0)
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(
        f"run: {{name: {folder.name}}}\ntraining: {{steps: {planned}}}\n"
        "stability: {detectors: {rank: {steps: 50}}}\n"
    )
    with Recorder(folder) as recorder:
        for step in range(1, steps + 1):
            loss = 2 + 3 * np.exp(-step / 20) + 0.05 * rng.standard_normal()
            line = {"tokens": step * 1024, "loss": loss, "grad_norm": 1.0, "lr": 0.03, "tokens_per_s": 2048.0}
            recorder.log(step, **line, **({"val_loss": loss + 0.1} if step % 25 == 0 else {}))
            if step % INTERVAL == 0:
                recorder.signals(step, **arrays(step, collapses=collapses))
    return folder


def arrays(step: int, *, collapses: bool) -> dict[str, Any]:
    """One measurement. Logits of a collapsing run pass 1,000 in layer 3 at step 80, tokens 0.99 in layer 1 at 40."""
    ratio_LA = np.full((LAYERS, HEADS), 0.9)
    ratio_LA[1, 3] = 0.62
    logit_LA = np.full((LAYERS, HEADS), 5.0 + step / 100)
    cosine_L = np.linspace(0.1, 0.4, LAYERS)
    if collapses:
        layer, head, at = FIRST
        ratio_LA[layer, head] = 0.02 if step >= at else 0.5
        ratio_LA[0, :] = 0.05 if step >= at + 20 else 0.8
        logit_LA[3, 0] = 4200.0 if step >= 80 else 10.0
        cosine_L[1] = 0.999 if step >= 40 else 0.3
    return {
        "entropy_ratio": ratio_LA,
        "max_logit": logit_LA,
        "token_cosine": cosine_L,
        "matrix": np.array(NAMES),
        "sigma": np.array([1.0, 2.0 + step / 10, 1.5, 1.2]),
        "gamma": np.array([1.0, 1.1, -3.0 * step / STEPS, 1.2]),
    }


def end(folder: Path, status: str) -> None:
    """Write the summary that says that the run is complete."""
    write_json(folder / "summary.json", {"status": status, "steps": STEPS})
