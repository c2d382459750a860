"""A stand-in for `steadytrain train CONFIG`: writes a plausible run folder through the recorder, in milliseconds.

python -m tests.comparison.fake_trial CONFIG.yaml [ok | diverge | fail | half | hang | hopeless]
"""

import math
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np

from configs.load import load
from configs.schema import Config
from monitoring.recorder import Recorder
from monitoring.tracker import Tracker

INITIAL = 5.6


def write_run(config: Config, mode: str = "ok") -> None:
    """A run that collapses at high learning rates unless it has QK-norm or sigmaReparam.

    `half` stops in the middle without a summary; `diverge` ends there with a loss that is not finite.
    """
    lr, layers, heads = config.optimizer.lr, config.model.layers, config.model.heads
    steady = config.model.qk_norm or config.model.reparam.kind == "sigma"
    random = np.random.default_rng(config.training.seed)
    collapsing = 0.0 if steady else max(0.0, math.log10(lr) + 2.7)  # 0 below 2e-3, 1.7 at 1e-1
    sigma = config.model.reparam.kind == "sigma"
    best, distance = (2.2, math.log10(lr) + 1.2) if sigma else (2.3, math.log10(lr) + 2.8)
    final = best + 0.12 * distance**2 + 0.25 * collapsing + 0.02 * random.standard_normal()
    total = config.training.steps
    steps = total if mode == "ok" else max(1, total // 2)
    ratio_LA, logit = np.ones((layers, heads)), 1.0
    with Recorder(config.run_dir, Tracker.open(config, config.run_dir)) as recorder:
        for step in range(1, steps + 1):
            loss = final + (INITIAL - final) * math.exp(-(step - 1) / 15)
            line = {"loss": loss, "tokens": 1024 * step, "lr": lr, "grad_norm": 1.0, "tokens_per_s": 21_000.0}
            if step == 1 or step % max(1, config.monitoring.interval) == 0:
                speed_LA = 1 + 0.5 * random.random((layers, heads))
                ratio_LA = 0.95 * np.exp(-collapsing * speed_LA * step / 45) * (1 - 0.12 * step / total * speed_LA)
                logit = 4 * math.exp(min(11, collapsing * step / 25)) + 12 * step / total
                recorder.signals(step, entropy_ratio=ratio_LA)
                line |= {"entropy_ratio": float(ratio_LA.mean()), "max_logit": logit}
            recorder.log(step, **line)
        if mode == "half":
            return
        summary = {"initial_loss": INITIAL, "entropy_ratio": float(ratio_LA.mean()), "max_logit": logit, "steps": steps}
        ending = {"status": "diverged", "val_loss": math.nan} if mode == "diverge" else {"status": "finished"}
        recorder.summary({"val_loss": final, **summary, "tokens_per_s": 21_000.0, "wall_s": 8.0} | ending)
        recorder.close("diverged" if mode == "diverge" else "finished")


def hopeless(config: Config) -> None:
    """Half of a run whose loss only rises, and then no step more; ends on SIGTERM as training does."""
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    with Recorder(config.run_dir, Tracker.open(config, config.run_dir)) as recorder:
        for step in range(1, config.training.steps // 2 + 1):
            recorder.log(step, loss=INITIAL + 0.01 * (step - 1), tokens=1024 * step, lr=config.optimizer.lr)
        signal.pause()


def hang(run_dir: Path) -> None:
    """Start two children, one in a session of its own, all deaf to SIGTERM, tell the FIFO their pids, wait for ever."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    deaf = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('deaf', flush=True); signal.pause()"
    children = [
        subprocess.Popen([sys.executable, "-c", deaf], start_new_session=own, stdout=subprocess.PIPE)
        for own in (False, True)
    ]
    for child in children:
        assert child.stdout is not None
        child.stdout.readline()
    (run_dir / "pids").write_text(" ".join(str(child.pid) for child in children))
    signal.pause()


def main(config: Config, mode: str) -> int:
    if mode == "fail":
        sys.stderr.write("loading\nmodel.heads = 5: no such luck\n")
        return 1
    if mode == "hang":
        hang(config.run_dir)
    if mode == "hopeless":
        hopeless(config)
    write_run(config, mode)
    return 3 if mode == "diverge" else 0


if __name__ == "__main__":
    sys.exit(main(load(Path(sys.argv[1])), sys.argv[2] if len(sys.argv) > 2 else "ok"))
