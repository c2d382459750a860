"""Batches that a run skips because it went back to a checkpoint from before them.

`rollbacks.json` in the run folder says which; it outlives the checkpoints that the run left behind, and every attempt
begins by reading it. A rollback that skips n steps from step f on makes step s >= f take the batch that step s + n had
before it; `batch` follows them all, and where none skips, step s (from 0) takes batch s.

Source of the remedy: Chowdhery et al. 2022 (PaLM), section 5.1.
"""

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from configs.atomic import write_atomically
from configs.errors import DataError

ROLLBACKS = "rollbacks.json"


@dataclass(frozen=True)
class Rollback:
    """One return to a checkpoint. Steps count from 0 here, as the loop's do."""

    to: int
    """Updates done in the checkpoint that training went on from."""
    spike: int
    """The step that had the trouble."""
    skip_from: int
    """The first step that takes another batch than before ..."""
    skipped: int
    """... because so many are left out."""
    reason: str
    complete: bool = False
    """Whether the checkpoints above `to` are gone and the record says so: if not, a kill came in between."""


class Rewinds:
    """The rollbacks of one run, oldest first."""

    def __init__(self, rollbacks: Iterable[Rollback] = ()) -> None:
        self._rollbacks = tuple(rollbacks)

    def __len__(self) -> int:
        return len(self._rollbacks)

    @property
    def entries(self) -> tuple[Rollback, ...]:
        """The rollbacks."""
        return self._rollbacks

    def batch(self, step: int) -> int:
        """The index of the global batch that a step takes."""
        for entry in reversed(self._rollbacks):  # the newest counts in steps that the older ones had moved
            if step >= entry.skip_from:
                step += entry.skipped
        return step

    @property
    def unfinished(self) -> Rollback | None:
        """A rollback during which the process was killed."""
        last = self._rollbacks[-1] if self._rollbacks else None
        return last if last is not None and not last.complete else None

    def plus(self, rollback: Rollback) -> "Rewinds":
        """With one more."""
        return Rewinds((*self._rollbacks, rollback))

    def completed(self) -> "Rewinds":
        """With the last one done."""
        return Rewinds((*self._rollbacks[:-1], replace(self._rollbacks[-1], complete=True)))

    def known_to(self, step: int) -> "Rewinds":
        """Those that a run which goes on from the checkpoint of `step` has behind it: the others are yet to come.

        A rollback leaves no checkpoint above its `to`, so `step` comes after the last one with `to` <= `step`, and
        after all before that one.
        """
        known = max((count for count, entry in enumerate(self._rollbacks, start=1) if entry.to <= step), default=0)
        return Rewinds(self._rollbacks[:known])

    def write(self, run_dir: Path) -> None:
        """Keep them in the run folder, all or nothing."""
        write_atomically(run_dir / ROLLBACKS, json.dumps([asdict(entry) for entry in self._rollbacks], indent=1) + "\n")

    @staticmethod
    def read(run_dir: Path) -> "Rewinds":
        """Those of a run folder. Raises: DataError if the file is not what a run writes."""
        path = run_dir / ROLLBACKS
        if not path.exists():
            return Rewinds()
        try:
            return Rewinds(TypeAdapter(tuple[Rollback, ...]).validate_json(path.read_bytes(), strict=True))
        except ValidationError:
            raise DataError(f"{path}: damaged: it says which batches the run skips; restore it or start anew") from None
