"""`steadytrain checkpoints`: what a run has saved, and whether it is whole."""

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich import box
from rich.table import Table

from configs.errors import CheckpointError
from launcher.run_folder import CONFIG
from training.checkpoint import store
from training.checkpoint.manifest import Manifest

UNITS = ((86400.0, "d"), (3600.0, "h"), (60.0, "min"), (1.0, "s"))


@dataclass(frozen=True)
class Listed:
    """One checkpoint. What only its manifest tells is None where that cannot be read."""

    path: str
    step: int
    good: bool
    verdict: str
    tokens: int | None = None
    bytes: int | None = None
    created: float | None = None
    layout: dict[str, Any] | None = None
    val_loss: float | None = None


def listed(run_dir: Path, *, read_bytes: bool) -> list[Listed]:
    """The checkpoints of a run, newest first: sizes and headers checked, with `read_bytes` every byte.

    Raises: CheckpointError if the folder is no run, or has no checkpoint.
    """
    folders = store.steps(run_dir / store.FOLDER)
    if folders:
        found = [_look_at(folder, read_bytes=read_bytes) for folder in folders]
        return [entry for entry in found if Path(entry.path).exists()]  # a run under way may have pruned one meanwhile
    if not run_dir.is_dir():
        raise CheckpointError(f"{run_dir}: no such folder; give the folder of a run, such as runs/tiny")
    if not (run_dir / CONFIG).is_file():
        raise CheckpointError(f"{run_dir}: is no run (there is no {CONFIG}); give the folder of a run")
    raise CheckpointError(f"{run_dir}: has no checkpoints; checkpoint.interval sets when a run saves them")


def table(checkpoints: list[Listed]) -> Table:
    """One row per checkpoint."""
    shown = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for heading in ("step", "tokens", "size"):
        shown.add_column(heading, justify="right", no_wrap=True)
    shown.add_column("tp x pp x dp", no_wrap=True)
    for heading in ("age", "val loss"):
        shown.add_column(heading, justify="right", no_wrap=True)
    shown.add_column("verdict")
    now = time.time()
    for entry in checkpoints:
        shown.add_row(
            f"{entry.step:,}",
            _or_dash(entry.tokens, lambda tokens: f"{tokens:,}"),
            _or_dash(entry.bytes, _size),
            _or_dash(entry.layout, lambda layout: " x ".join(str(layout.get(key, "?")) for key in ("tp", "pp", "dp"))),
            _or_dash(entry.created, lambda created: _age(now - created)),
            _or_dash(entry.val_loss, lambda loss: f"{loss:.4f}"),
            entry.verdict,
            style="" if entry.good else "red",
        )
    return shown


def _look_at(folder: Path, *, read_bytes: bool) -> Listed:
    step = int(folder.name.removeprefix("step-"))
    good, verdict = True, "good, every byte" if read_bytes else "sizes right"
    try:
        manifest = store.verify(folder, read_bytes=read_bytes)
    except CheckpointError as error:
        good, verdict = False, str(error).removeprefix(str(folder)).lstrip("/: ")
        try:
            manifest = store.read_manifest(folder)
        except CheckpointError:
            return Listed(str(folder), step, good, verdict)
    return Listed(
        path=str(folder),
        step=step,
        good=good,
        verdict=verdict,
        tokens=_tokens(manifest),
        bytes=sum(record.size for record in manifest.files.values()),
        created=manifest.created,
        layout=manifest.layout,
        val_loss=manifest.val_loss,
    )


def _tokens(manifest: Manifest) -> int:
    training = manifest.config["training"]
    return manifest.step * training["global_batch_size"] * training["sequence_length"]


def _or_dash(value: Any, show: Any) -> str:
    return "-" if value is None else show(value)


def _size(count: float) -> str:
    for unit in ("B", "KB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"


def _age(seconds: float) -> str:
    for length, unit in UNITS:
        if seconds >= length:
            return f"{seconds / length:.0f} {unit}"
    return "0 s"
