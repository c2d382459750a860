"""What moved first: the order in which layers and heads passed a limit.

Letters: S measured steps, L layers, A heads.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from configs.errors import DataError
from configs.files import parse_yaml
from configs.stability import DetectorsConfig
from monitoring.history import Steps, Values

CONFIG = "config.yaml"


@dataclass(frozen=True)
class Crossing:
    """Where a layer first passed the limit. `step`: the measurement that shows it; `head` None: it has no heads."""

    step: int
    layer: int
    head: int | None
    value: float

    @property
    def place(self) -> str:
        return f"layer {self.layer}" if self.head is None else f"layer {self.layer} head {self.head}"


def first_crossings(step_S: Steps, value_S: Values, limit: float, *, below: bool) -> list[Crossing]:
    """For each layer that has passed the limit, its first head to do so; earliest first.

    `value_S` (S, L) or (S, L, A); `below`: passing means falling below, otherwise rising above. Of places that one
    measurement shows together, the one whose straight line between two measurements meets the limit first comes first.
    """
    if not step_S.size:
        return []
    value_SLA = value_S if value_S.ndim == 3 else value_S[:, :, None]
    passed_SLA = value_SLA < limit if below else value_SLA > limit
    first_LA = passed_SLA.argmax(axis=0)
    found = []
    for layer in np.flatnonzero(passed_SLA.any(axis=(0, 2))):
        heads = np.flatnonzero(passed_SLA[:, layer].any(axis=0))
        at, head = min(
            (_meets(step_S, value_SLA[:, layer, head], first_LA[layer, head], limit), head) for head in heads
        )
        index = first_LA[layer, head]
        crossing = Crossing(
            step=int(step_S[index]),
            layer=int(layer),
            head=int(head) if value_S.ndim == 3 else None,
            value=float(value_SLA[index, layer, head]),
        )
        found.append((at, crossing))
    return [crossing for _, crossing in sorted(found, key=lambda entry: entry[0])]


def detectors_of(run_dir: Path) -> DetectorsConfig:
    """The limits that the run's configuration sets. Raises DataError if they are not what a configuration has."""
    path = run_dir / CONFIG
    if not path.is_file():
        return DetectorsConfig()
    config = parse_yaml(path.read_text("utf-8"), str(path))
    try:
        return DetectorsConfig.model_validate((config or {}).get("stability", {}).get("detectors", {}))
    except (ValueError, AttributeError):
        raise DataError(f"{path}: stability.detectors: is not what this version reads") from None


def _meets(step_S: Steps, value_S: NDArray[np.float64], index: int, limit: float) -> float:
    """Where the line from the measurement before `index` to it meets the limit, in steps."""
    if index == 0 or not np.isfinite(value_S[index - 1 : index + 1]).all():
        return float(step_S[index])
    before, after = value_S[index - 1], value_S[index]
    return float(step_S[index - 1] + (before - limit) / (before - after) * (step_S[index] - step_S[index - 1]))
