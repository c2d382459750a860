"""Attention entropy collapse, what announces it, exploding logits, and rank collapse.

Shapes: L layers, A query heads, N measurements.
"""

from collections import deque
from collections.abc import Iterator
from typing import Any

import numpy as np

from configs.stability import EntropyConfig, LogitConfig, RankCollapseConfig
from stability.alarms import Alarm
from stability.detectors.base import Detector, Observation

SLOPE_OF = 3  # measurements a slope is taken through: the fewest that show whether a fall goes on
STEEP = 0.1  # of the causal maximum: a smaller fall over those measurements is training, not collapse


class EntropyCollapse(Detector):
    """Many heads look at one token only.

    In plain words: a head whose attention entropy is near zero copies one token and gets no gradient through its
    softmax; when more than a quarter of the heads are so, the loss follows. A head counts as collapsed when its
    entropy, as a share of what a uniform causal head has, is under the floor (0.1) or not a number, or 0.2 below the
    head's own rolling median of 201 measurements with a logit over 50. The median needs half of them. Heads that learn
    where to look lose that much too, with logits of 10 or 20, and are well.
    Source: Zhai et al. 2023, sections 3 and 4.1, for the phenomenon.
    """

    name = "entropy_collapse"

    def __init__(self, config: EntropyConfig) -> None:
        self._config = config
        self._past: deque[list[list[float]]] = deque(maxlen=config.window)

    def observe(self, seen: Observation) -> Iterator[Alarm]:
        if not {"entropy_ratio", "max_logit"} <= seen.arrays.keys():
            return
        ratio_LA = np.asarray(seen.arrays["entropy_ratio"], dtype=np.float64)
        collapsed_LA = ~(ratio_LA >= self._config.floor)
        if len(self._past) > self._config.window // 2:
            fell_LA = ratio_LA < np.median(np.array(self._past), axis=0) - self._config.drop
            collapsed_LA |= fell_LA & ~(np.asarray(seen.arrays["max_logit"]) <= self._config.logit)
        share = float(collapsed_LA.mean())
        if share > self._config.heads:
            lowest = np.argmin(np.where(collapsed_LA, ratio_LA, np.inf))  # the first nan, if there is one
            layer, head = map(int, np.unravel_index(lowest, ratio_LA.shape))
            reason = (
                f"{collapsed_LA.sum()} of {collapsed_LA.size} heads have collapsed; lowest: layer {layer}, head {head} "
                f"at {ratio_LA[layer, head]:.1%} of the causal maximum"
            )
            where: dict[str, int | str] = {"layer": layer, "head": head}
            yield Alarm(self.name, seen.step, "alarm", reason, share, self._config.heads, where)
        if np.isfinite(ratio_LA).all():
            self._past.append(ratio_LA.tolist())

    def state(self) -> dict[str, Any]:
        return {"past": list(self._past)}

    def load(self, state: dict[str, Any]) -> None:
        self._past.clear()
        self._past.extend(state["past"])


class EarlyWarning(Detector):
    """A layer's attention entropy falls so that it would reach the floor soon.

    In plain words: in each of its last measurements the layer's mean entropy was lower than in the one before, by a
    tenth of the causal maximum in all, the line through them meets the floor within the horizon (200 steps), and a
    logit of the layer is already over 50: the loss has not moved yet, and will. Heads that learn where to look fall as
    fast for a while, with logits of 10 or 20.
    """

    name = "early_warning"

    def __init__(self, config: EntropyConfig) -> None:
        self._config = config
        self._steps: deque[int] = deque(maxlen=SLOPE_OF)
        self._past: deque[list[float]] = deque(maxlen=SLOPE_OF)

    def observe(self, seen: Observation) -> Iterator[Alarm]:
        if not {"entropy_ratio", "max_logit"} <= seen.arrays.keys():
            return
        self._steps.append(seen.step)
        self._past.append(np.asarray(seen.arrays["entropy_ratio"], dtype=np.float64).mean(axis=1).tolist())
        if len(self._steps) < SLOPE_OF:
            return
        past_NL, steps_N = np.array(self._past), np.array(self._steps)
        from_middle_N = steps_N - steps_N.mean()
        slope_L = from_middle_N @ past_NL / (from_middle_N @ from_middle_N)  # least squares
        fall_L = past_NL[0] - past_NL[-1]
        ahead_L = past_NL[-1] + slope_L * self._config.horizon
        falls_on_L = (np.diff(past_NL, axis=0) < 0).all(axis=0)
        large_L = ~(np.asarray(seen.arrays["max_logit"], dtype=np.float64).max(axis=1) <= self._config.logit)
        falling_L = falls_on_L & (ahead_L < self._config.floor) & (fall_L > STEEP) & large_L
        if not falling_L.any():
            return
        layer = int(np.argmin(np.where(falling_L, ahead_L, np.inf)))
        now = float(past_NL[-1, layer])
        steps = max(0.0, (now - self._config.floor) / -slope_L[layer])
        reason = (
            f"mean entropy of layer {layer} fell from {past_NL[0, layer]:.1%} to {now:.1%} of the causal maximum in "
            f"{self._steps[-1] - self._steps[0]} steps: {self._config.floor:.0%} is {steps:.0f} steps away"
        )
        yield Alarm(self.name, seen.step, "warning", reason, now, self._config.floor, {"layer": layer})

    def state(self) -> dict[str, Any]:
        return {"steps": list(self._steps), "past": list(self._past)}

    def load(self, state: dict[str, Any]) -> None:
        self._steps.clear()
        self._past.clear()
        self._steps.extend(state["steps"])
        self._past.extend(state["past"])


class LogitExplosion(Detector):
    """The largest attention logit is so large that the softmax is a hard choice.

    In plain words: beyond 1,000 a softmax is one-hot; beyond 10,000 half precision loses what is left of its order.
    """

    name = "logit_explosion"

    def __init__(self, config: LogitConfig) -> None:
        self._config = config

    def observe(self, seen: Observation) -> Iterator[Alarm]:
        if "max_logit" not in seen.arrays:
            return
        logit_LA = np.asarray(seen.arrays["max_logit"], dtype=np.float64)
        layer, head = map(int, np.unravel_index(np.argmax(logit_LA), logit_LA.shape))
        largest = float(logit_LA[layer, head])
        if not largest <= self._config.warning:
            fatal = not largest <= self._config.fatal
            threshold = self._config.fatal if fatal else self._config.warning
            reason = f"largest attention logit {largest:.4g}, in layer {layer}, head {head}, is over {threshold:g}"
            where: dict[str, int | str] = {"layer": layer, "head": head}
            yield Alarm(self.name, seen.step, "fatal" if fatal else "alarm", reason, largest, threshold, where)

    def state(self) -> dict[str, Any]:
        return {}

    def load(self, state: dict[str, Any]) -> None:
        pass


class RankCollapse(Detector):
    """All tokens of a sequence have become one vector, and stay so.

    In plain words: when tokens are alike, attention is uniform (entropy at its maximum, so that an entropy monitor sees
    nothing), queries and keys get no gradient, and the loss stays at that of a model that counts tokens. A model that
    has just begun counts tokens too: only what lasts is an alarm.
    Source: Noci et al. 2022.
    """

    name = "rank_collapse"

    def __init__(self, config: RankCollapseConfig) -> None:
        self._config = config
        self._since: int | None = None

    def observe(self, seen: Observation) -> Iterator[Alarm]:
        if "token_cosine" not in seen.arrays:
            return
        cosine_L = np.asarray(seen.arrays["token_cosine"], dtype=np.float64)
        over = np.flatnonzero(cosine_L > self._config.cosine)
        if not over.size:
            self._since = None
            return
        self._since = seen.step if self._since is None else self._since
        if seen.step - self._since >= self._config.steps:
            layer, more = int(over[0]), f", and of {over.size - 1} more layers" if over.size > 1 else ""
            cosine = float(cosine_L[layer])
            reason = (
                f"tokens at the output of layer {layer}{more} have had a mean cosine of over {self._config.cosine:g} "
                f"(now {cosine:.4f}) since step {self._since}"
            )
            yield Alarm(self.name, seen.step, "alarm", reason, cosine, self._config.cosine, {"layer": layer})

    def state(self) -> dict[str, Any]:
        return {"since": self._since}

    def load(self, state: dict[str, Any]) -> None:
        self._since = state["since"]
