"""How a run ended, as its processes tell the launcher."""

import json
import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from configs.atomic import write_atomically

OUTCOME = "outcome.json"


@dataclass(frozen=True)
class Outcome:
    """The end of a run: rank 0's summary and the run folder."""

    status: str
    val_loss: float | None
    run_dir: str
    reason: str | None = None
    """Why it did not finish."""

    @classmethod
    def of(cls, summary: Any, run_dir: Path) -> "Outcome":
        """From a `training.run.Summary`."""
        loss = summary.val_loss
        known = loss is not None and not math.isnan(loss)  # a run that stopped early may not have been evaluated yet
        from monitoring.recorder import read_events  # brings numpy

        ends = [event["reason"] for event in read_events(run_dir) if event["kind"] == "diverged"]
        reason = ends[-1] if summary.status == "diverged" and ends else None
        return cls(summary.status, float(loss) if known else None, str(run_dir), reason)

    def line(self) -> str:
        """The last line of `steadytrain train`."""
        loss = "" if self.val_loss is None else f", validation loss {self.val_loss:.4f}"
        reason = "" if self.reason is None else f": {self.reason}"
        return f"{self.run_dir}: {self.status}{loss}{reason}"

    def write(self, logs: Path) -> None:
        """Leave the outcome for the launcher."""
        write_atomically(logs / OUTCOME, json.dumps(asdict(self)))

    @classmethod
    def read(cls, logs: Path) -> "Outcome":
        """What rank 0 left. Raises FileNotFoundError if it left nothing."""
        return cls(**json.loads((logs / OUTCOME).read_text("utf-8")))
