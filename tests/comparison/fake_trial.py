"""A stand-in for `steadytrain train CONFIG`: writes a plausible run folder through the recorder, in milliseconds.

python fake_trial.py CONFIG.yaml [MODE]
"""

import math
import sys
from pathlib import Path

import numpy as np

from configs.load import load
from configs.schema import Config
from monitoring.recorder import Recorder

INITIAL = 5.6


def write_run(config: Config, *, steps: int | None = None) -> None:
    """A run that collapses at high learning rates unless it has QK-norm or sigmaReparam; `steps`: stop there."""
    lr, layers, heads = config.optimizer.lr, config.model.layers, config.model.heads
    steady = config.model.qk_norm or config.model.reparam.kind == "sigma"
    random = np.random.default_rng(config.training.seed)
    collapsing = 0.0 if steady else max(0.0, math.log10(lr) + 2.7)  # 0 below 2e-3, 1.7 at 1e-1
    distance = abs(math.log10(lr) + (1.2 if config.model.reparam.kind == "sigma" else 2.8))
    final = 2.3 + 0.12 * distance**2 + 0.25 * collapsing + 0.02 * random.standard_normal()
    total = config.training.steps if steps is None else steps
    with Recorder(config.run_dir) as recorder:
        ratio_LN = np.ones((layers, heads))
        for step in range(total):
            loss = final + (INITIAL - final) * math.exp(-step / 15) + 0.03 * random.standard_normal()
            line = {"loss": loss, "tokens": 1024 * step, "lr": lr, "grad_norm": 1.0, "tokens_per_s": 21_000.0}
            if step % max(1, config.monitoring.interval) == 0:
                speed_LN = 1 + 0.5 * random.random((layers, heads))
                ratio_LN = 0.95 * np.exp(-collapsing * speed_LN * step / 45) * (1 - 0.12 * step / total * speed_LN)
                logit = 4 * math.exp(min(11, collapsing * step / 25)) + 12 * step / total
                maximum = math.lgamma(config.training.sequence_length + 1) / config.training.sequence_length
                recorder.signals(step, entropy=ratio_LN * maximum, entropy_ratio=ratio_LN)
                line |= {"entropy_ratio": float(ratio_LN.mean()), "max_logit": logit}
            recorder.log(step, **line)
        if steps is not None:
            return
        summary = {"initial_loss": INITIAL, "val_loss": final, "entropy_ratio": float(ratio_LN.mean())}
        recorder.summary(
            {"status": "finished", "steps": total, **summary, "max_logit": logit, "tokens_per_s": 21_000, "wall_s": 8}
        )


if __name__ == "__main__":
    write_run(load(Path(sys.argv[1])))
