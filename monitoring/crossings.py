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


def first_crossings(step_S: Steps, value_S: Values, limit: float, *, below: bool, lasting: int = 0) -> list[Crossing]:
    """For each layer that has passed the limit, its first head to do so; earliest first.

    `value_S` (S, L) or (S, L, A); `below`: passing means falling below, otherwise rising above; `lasting`: for at least
    so many steps, as far as measurements tell. Of places that one measurement shows together, the one whose straight
    line between two measurements meets the limit first comes first.
    """
    if not step_S.size:
        return []
    value_SLA = value_S if value_S.ndim == 3 else value_S[:, :, None]
    passed_SLA = value_SLA < limit if below else value_SLA > limit
    found = []
    for layer in np.flatnonzero(passed_SLA.any(axis=(0, 2))):
        meetings = []
        for head in np.flatnonzero(passed_SLA[:, layer].any(axis=0)):
            index = _begins(step_S, passed_SLA[:, layer, head], lasting)
            if index is not None:
                meetings.append((_meets(step_S, value_SLA[:, layer, head], index, limit), index, head))
        if meetings:
            at, index, head = min(meetings)
            place = int(head) if value_S.ndim == 3 else None
            value = float(value_SLA[index, layer, head])
            found.append((at, Crossing(step=int(step_S[index]), layer=int(layer), head=place, value=value)))
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


def _begins(step_S: Steps, passed_S: NDArray[np.bool_], lasting: int) -> int | None:
    """The measurement at which the first run of them begins that have all passed and that lasts long enough."""
    change = np.diff(passed_S.astype(np.int8), prepend=0, append=0)
    begins, lasts = np.flatnonzero(change == 1), np.flatnonzero(change == -1) - 1
    enough = np.flatnonzero(step_S[lasts] - step_S[begins] >= lasting)
    return int(begins[enough[0]]) if enough.size else None


def _meets(step_S: Steps, value_S: NDArray[np.float64], index: int, limit: float) -> float:
    """Where the line from the measurement before `index` to it meets the limit, in steps."""
    if index == 0 or not np.isfinite(value_S[index - 1 : index + 1]).all():
        return float(step_S[index])
    before, after = value_S[index - 1], value_S[index]
    return float(step_S[index - 1] + (before - limit) / (before - after) * (step_S[index] - step_S[index - 1]))
