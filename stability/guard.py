"""The judgement of a step before its update: leave it out, or clip it harder; the same on every rank.

It is computed on the device from numbers that all ranks share (the reduced loss, the global gradient norm) and read
with the one copy to the host that a step makes anyway: no further collective and no further synchronisation.

Shapes: W steps of the window, 2 kinds of numbers (loss, gradient norm).
"""

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from configs.stability import SkipConfig, ZClipConfig


@dataclass(frozen=True)
class Judgement:
    """What was read of a step, on the host, and how its gradients are to be treated."""

    loss: float
    stopping: bool
    """Some rank was asked to stop."""
    grad_norm: float
    """Before clipping; inf if it is not finite."""
    keep: bool
    """Whether the update is made."""
    clipped_to: float
    """Norm that z-score clipping allows; inf where it does not clip, or no harder than `optimizer.clip`."""
    scale: Tensor | None
    """What the gradients are divided by, on the device; None: left as they are."""
    more: tuple[float, ...] = ()
    """What else was reduced with the loss."""


class Guard:
    """`optimizer.clip`, OLMo-core's skip rule and ZClip, in one place, with their state."""

    def __init__(self, skip: SkipConfig, zclip: ZClipConfig, clip: float, device: torch.device) -> None:
        self._clip = clip or math.inf
        self._outliers = OutlierRule(skip, device) if skip.enabled else None
        self._zclip = ZClip(zclip, device) if zclip.enabled else None

    @torch.no_grad()
    def judge(self, totals: Tensor, norm: Tensor) -> Judgement:
        """`totals`: (loss, requests to stop, anything more) as reduced over all ranks; `norm`: of the gradients."""
        wide = norm.to(totals.dtype)
        keep = self._outliers.judge(torch.stack([totals[0], wide])) if self._outliers else torch.ones_like(wide)
        allowed = self._zclip.allow(wide) if self._zclip else torch.full_like(wide, math.inf)
        allowed = torch.where(allowed < self._clip, allowed, math.inf)
        grad_norm, kept, clipped_to, loss, requests, *more = torch.stack([wide, keep, allowed, *totals]).tolist()
        return Judgement(loss, requests > 0, grad_norm, kept > 0, clipped_to, self._scale(norm, allowed), tuple(more))

    def state(self) -> dict[str, Any]:
        """What a resumed run needs, as JSON values."""
        rules = {"skip": self._outliers, "zclip": self._zclip}
        return {name: rule.state() for name, rule in rules.items() if rule is not None}

    def load(self, state: dict[str, Any]) -> None:
        """Go on from `state`; a rule that was off when it was saved begins anew."""
        for name, rule in {"skip": self._outliers, "zclip": self._zclip}.items():
            if rule is not None and name in state:
                rule.load(state[name])

    def _scale(self, norm: Tensor, allowed: Tensor) -> Tensor | None:
        """As DeepSpeed and torch clip: divide by (norm + 1e-6) / limit where that is more than 1."""
        if self._zclip is None and self._clip == math.inf:
            return None
        limit = self._clip if self._zclip is None else allowed.clamp(max=self._clip)
        return torch.clamp((norm + 1e-6) / limit, min=1.0)


class OutlierRule:
    """Keep a step unless its loss or gradient norm is over `sigmas` standard deviations above the window's mean.

    A number that is not finite is an outlier from the first step on, and does not count in the window; other
    outliers do, so that a change for good is followed after a while.
    Source: OLMo-core's SkipStepOptimizer (6 sd of the last 128 steps, once there are about 64).
    """

    def __init__(self, config: SkipConfig, device: torch.device) -> None:
        self._config = config
        self._window_2W = torch.full((2, config.window), math.nan, dtype=torch.float64, device=device)
        self._seen = 0

    def judge(self, values_2: Tensor) -> Tensor:
        """1 to keep the step, 0 to leave its update out; the step enters the window."""
        known_2W = self._window_2W.isfinite()
        count_2 = known_2W.sum(1)
        filled_2W = torch.where(known_2W, self._window_2W, 0.0)
        mean_2 = filled_2W.sum(1) / count_2
        deviation_2W = torch.where(known_2W, self._window_2W - mean_2[:, None], 0.0)
        sd_2 = (deviation_2W.square().sum(1) / (count_2 - 1)).sqrt()
        finite_2 = values_2.isfinite()
        outlier_2 = (count_2 >= self._config.minimum) & (values_2 > mean_2 + self._config.sigmas * sd_2)
        slot = self._seen % self._config.window
        self._window_2W[:, slot] = values_2
        self._seen += 1
        return (finite_2 & ~outlier_2).all().to(values_2.dtype)

    def state(self) -> dict[str, Any]:
        """The window in JSON values (nan as None) and how many steps it has seen."""
        rows = [[value if math.isfinite(value) else None for value in row] for row in self._window_2W.tolist()]
        return {"window": rows, "seen": self._seen}

    def load(self, state: dict[str, Any]) -> None:
        """Go on from `state`; with another window length, from its newest part."""
        size = self._config.window
        for row, saved in zip(self._window_2W, state["window"], strict=True):
            newest = [saved[(state["seen"] - 1 - k) % len(saved)] for k in range(min(size, len(saved)))]
            row.fill_(math.nan)
            for k, value in enumerate(newest):
                row[(state["seen"] - 1 - k) % size] = math.nan if value is None else value
        self._seen = state["seen"]


class ZClip:
    """Clip the gradient norm g to mu + z0² sd / z where z = (g - mu) / sd is over z0.

    mu and sd² are moving averages of the norm (as clipped) and its squared distance from mu; the first `warmup` steps
    fill them with the plain mean and variance and clip nothing. A norm that is not finite leaves them alone.
    Source: Kumar et al. 2025 (ZClip), with its defaults: decay .97, z0 2.5, 25 steps.
    """

    def __init__(self, config: ZClipConfig, device: torch.device) -> None:
        self._config = config
        self._state_3 = torch.zeros(3, dtype=torch.float64, device=device)  # count, mean, variance

    def allow(self, norm: Tensor) -> Tensor:
        """The largest norm allowed for this step, inf where it is not clipped; the step enters the averages."""
        config, (count, mean, variance) = self._config, self._state_3
        z = (norm - mean) / (variance.sqrt() + 1e-12)
        warm = count >= config.warmup
        clips = warm & (z > config.threshold) & norm.isfinite()
        limit = mean + config.threshold**2 / z * variance.sqrt()
        value = torch.where(clips, limit, norm)

        warm_mean = config.decay * mean + (1 - config.decay) * value
        warm_variance = config.decay * variance + (1 - config.decay) * (value - warm_mean).square()
        first_mean = mean + (value - mean) / (count + 1)
        first_variance = (count * variance + (value - mean) * (value - first_mean)) / (count + 1)
        new_3 = torch.stack(
            [count + 1, torch.where(warm, warm_mean, first_mean), torch.where(warm, warm_variance, first_variance)]
        )
        self._state_3 = torch.where(norm.isfinite(), new_3, self._state_3)
        return torch.where(clips, limit, math.inf)

    def state(self) -> list[float]:
        """Count, mean and variance."""
        return self._state_3.tolist()

    def load(self, state: list[float]) -> None:
        """Go on from `state`."""
        self._state_3.copy_(torch.tensor(state, dtype=torch.float64))
