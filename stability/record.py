"""The forensic record of an alarm: one file, `spikes/<id>.npz` in the run folder, that explains itself.

A record has a header (JSON), tracks (values at the steps that they are known for) and labels (names along an axis):

    track               values at each step                                          labels of its axes
    loss, grad_norm, lr, seconds, kept (was the update made), batch                  -
    gradient            norm of each rank's own gradient of each parameter (R, P)    rank, parameter
    sigma, gamma        of each reparametrised matrix (M)                            matrix
    measured.<name>     what the monitors saw, at measured steps                     measured.matrix, where by matrix
    samples.<name>      place of each sample of the batch (G), `data.documents.sample_table`

`holds` (R, P) says which rank holds which parameter; `gradient` is NaN elsewhere, and for a NaN in a gradient.
"""

import json
import os
import zipfile
import zlib
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from configs.errors import DataError
from stability.alarms import Alarm

FOLDER = "spikes"
HEADER, LABEL, STEPS = "header", "label:", "@steps"


@dataclass(frozen=True)
class Track:
    """Values (S, ...) at steps (S,), counted in updates done, from 1."""

    steps: NDArray[np.int64]
    values: NDArray[Any]

    def upto(self, step: int) -> "Track":
        """The part until `step`, which is included."""
        return Track(self.steps[self.steps <= step], self.values[self.steps <= step])


@dataclass(frozen=True)
class Place:
    """A rank: its machine, device and coordinates."""

    rank: int
    host: str
    device: str
    tp: int
    pp: int
    dp: int


@dataclass(frozen=True)
class Header:
    """What a record is of."""

    id: str
    run: str
    written: float
    """Seconds since the epoch."""
    alarms: list[Alarm]
    config: dict[str, Any]
    config_digest: str
    data_fingerprint: str
    ranks: list[Place]
    versions: dict[str, str]
    seed: int
    random_states: list[str]
    """Digest of torch's generators by rank."""


@dataclass(frozen=True)
class Record:
    """A forensic record; `alarms` of the header has at least one, the first to fire."""

    header: Header
    tracks: dict[str, Track]
    labels: dict[str, NDArray[Any]] = field(default_factory=dict)

    @property
    def alarm(self) -> Alarm:
        return self.header.alarms[0]

    def write(self, run_dir: Path) -> Path:
        """Put the record into a run's folder, over an earlier one of its id, all or nothing. Raises: OSError."""
        path = path_of(run_dir, self.header.id)
        path.parent.mkdir(parents=True, exist_ok=True)
        arrays: dict[str, NDArray[Any]] = {HEADER: np.array(json.dumps(asdict(self.header)))}
        for name, track in self.tracks.items():
            arrays |= {name: track.values, f"{name}{STEPS}": track.steps}
        arrays |= {f"{LABEL}{name}": values for name, values in self.labels.items()}
        scratch = path.with_suffix(".tmp")
        with scratch.open("wb") as file:
            np.savez_compressed(file, **arrays)  # type: ignore[arg-type]
        os.replace(scratch, path)
        return path

    @classmethod
    def read(cls, path: Path) -> "Record":
        """Read a record back. Raises: DataError if it is missing, or not what `write` writes."""
        try:
            with np.load(path, allow_pickle=False) as file:
                arrays = {name: file[name] for name in file.files}
            header = json.loads(str(arrays.pop(HEADER)))
            header["alarms"] = [Alarm(**alarm) for alarm in header["alarms"]]
            header["ranks"] = [Place(**rank) for rank in header["ranks"]]
            labels = {key.removeprefix(LABEL): arrays.pop(key) for key in list(arrays) if key.startswith(LABEL)}
            steps = {key.removesuffix(STEPS): arrays.pop(key) for key in list(arrays) if key.endswith(STEPS)}
            tracks = {name: Track(steps[name], values) for name, values in arrays.items()}
            if not header["alarms"] or ("samples.id" in tracks and "batch" not in tracks):
                raise ValueError("an alarm or the batches are missing")
            return cls(Header(**header), tracks, labels)
        except FileNotFoundError:
            raise DataError(f"{path}: no such record") from None
        except (OSError, ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile, zlib.error) as error:
            raise DataError(f"{path}: not a forensic record, or damaged: {error}") from None


def path_of(run_dir: Path, record_id: str) -> Path:
    """Where the record of an id lies."""
    return run_dir / FOLDER / f"{record_id}.npz"


def record_ids(run_dir: Path) -> list[str]:
    """Ids of a run's records, by step."""
    return sorted(path.stem for path in (run_dir / FOLDER).glob("*.npz"))


def record_id(alarm: Alarm) -> str:
    """The id of the record that an alarm causes, such as 000123-loss_spike."""
    return f"{alarm.step:06d}-{alarm.detector}"
