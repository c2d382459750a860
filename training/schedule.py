"""Learning rate as a pure function of the step: nothing to save, nothing to restart."""

import math

from configs.schema import ScheduleConfig


def learning_rate(step: int, peak: float, steps: int, config: ScheduleConfig) -> float:
    """The rate of update `step` (from 0) of `steps`.

    Linear warm-up reaches the peak at step `warmup_steps`. `cosine` then falls to `min_ratio` x peak at the last
    step; `wsd` stays at the peak and falls linearly over the last `decay_steps` (Hu et al. 2024).
    """
    if step < config.warmup_steps:
        return peak * (step + 1) / (config.warmup_steps + 1)
    if config.kind == "cosine":
        progress = (step - config.warmup_steps) / max(1, steps - 1 - config.warmup_steps)
        return peak * (config.min_ratio + (1 - config.min_ratio) * 0.5 * (1 + math.cos(math.pi * min(1.0, progress))))
    if config.kind == "wsd":
        left = steps - 1 - step
        fraction = min(1.0, left / config.decay_steps)
        return peak * (config.min_ratio + (1 - config.min_ratio) * fraction)
    return peak
