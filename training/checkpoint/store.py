"""The folders of a run's checkpoints: written under a hidden name, committed by one rename, pruned, found again.

    <run_dir>/checkpoints/
        step-00000020/              committed: safetensors files and manifest.json
        latest -> step-00000020     the last one committed
        .step-00000040.partial/     being written, or left by a kill
        .step-00000010.deleted/     being deleted, or left by a kill

Only one process writes at a time. A kill at any point leaves every committed checkpoint whole or gone, never half.
"""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from configs.errors import CheckpointError
from training.checkpoint.manifest import (
    FOLDER_NAME,
    FileRecord,
    Manifest,
    describe,
    read_manifest,
    verify,
    write_manifest,
)

__all__ = [
    "FOLDER",
    "FileRecord",
    "Manifest",
    "begin",
    "clear_leftovers",
    "commit",
    "describe",
    "newest_good",
    "prune",
    "read_manifest",
    "rollback",
    "steps",
    "verify",
]

FOLDER = "checkpoints"
"""The folder of a run that holds them."""

LATEST = "latest"
_LATEST_SCRATCH = ".latest.partial"


def begin(checkpoints_dir: Path, step: int) -> Path:
    """An empty scratch folder for the files of `step`; what kills left behind is deleted first. Raises OSError."""
    clear_leftovers(checkpoints_dir)
    scratch = checkpoints_dir / f".{_folder_name(step)}.partial"
    scratch.mkdir(parents=True)
    _fsync_folder(checkpoints_dir.parent)
    return scratch


def commit(scratch: Path, manifest: Manifest) -> Path:
    """Make the files in `scratch`, already brought to the disk, the checkpoint of `manifest.step`.

    A good checkpoint of the same step stays, and `scratch` is dropped; a damaged one is replaced.
    Raises: CheckpointError if `scratch` does not hold the files of `manifest`; OSError, for instance when the disk is
    full. Earlier checkpoints are then as they were.
    """
    checkpoints_dir = scratch.parent
    target = checkpoints_dir / _folder_name(manifest.step)
    assert scratch.name == f".{target.name}.partial", f"{scratch} is no scratch folder of step {manifest.step}"
    write_manifest(scratch, manifest)
    verify(scratch, read_bytes=False)
    _fsync_folder(scratch)
    if _is_good(target):
        _delete(scratch)
    else:
        if os.path.lexists(target):
            _set_aside(target)
        os.rename(scratch, target)
        _fsync_folder(checkpoints_dir)
    _point_latest_to(target)
    _delete(_deleted_name(target))
    return target


def clear_leftovers(checkpoints_dir: Path) -> None:
    """Delete what failed saves and kills left behind, which may be what fills the disk.

    Not to be called while a save is under way: its scratch folder would go too. Raises OSError.
    """
    for leftover in checkpoints_dir.glob(".step-*"):
        if leftover.suffix in (".partial", ".deleted"):
            _delete(leftover)


def steps(checkpoints_dir: Path) -> list[Path]:
    """Committed checkpoints, newest first, good or not."""
    if not checkpoints_dir.is_dir():
        return []
    folders = [path for path in checkpoints_dir.iterdir() if FOLDER_NAME.fullmatch(path.name)]
    return sorted(folders, key=_step, reverse=True)


def newest_good(checkpoints_dir: Path, at_most: int | None = None) -> tuple[Path, Manifest, list[str]] | None:
    """The newest checkpoint whose every byte is as written, and why newer ones were passed over; None if there is none.

    `at_most`: look at those of this step and before only.
    Raises: CheckpointError if there are checkpoints and all are damaged.
    """
    passed_over: list[str] = []
    for folder in steps(checkpoints_dir):
        if at_most is not None and _step(folder) > at_most:
            continue
        try:
            return folder, verify(folder, read_bytes=True), passed_over
        except CheckpointError as error:
            passed_over.append(str(error))
    if not passed_over:
        return None
    others = f" (and {len(passed_over) - 1} older)" if len(passed_over) > 1 else ""
    raise CheckpointError(f"{checkpoints_dir}: no good checkpoint is left: {passed_over[0]}{others}")


def prune(checkpoints_dir: Path, *, keep: int, keep_every: int) -> list[Path]:
    """Delete checkpoints that no rule keeps, and what kills left behind; return the deleted ones, oldest first.

    Kept are the `keep` newest, multiples of `keep_every` (0: none), the one with the lowest `val_loss`, and the one
    written last, whatever its step: after a fallback it may be the only good one. Only checkpoints whose names, sizes
    and headers are right count; damaged ones newer than all that count stay for inspection. Leftovers go as by
    `clear_leftovers`, with its condition. Raises OSError.
    """
    assert keep >= 1
    clear_leftovers(checkpoints_dir)
    sound = list(_sound(checkpoints_dir))
    if not sound:
        return []
    kept = _kept(sound, keep, keep_every) | {_written_last(checkpoints_dir, sound)}
    newest_sound = _step(sound[0][0])
    doomed = [f for f in reversed(steps(checkpoints_dir)) if f not in kept and _step(f) <= newest_sound]
    _point_latest_to(_written_last(checkpoints_dir, sound))
    for folder in doomed:
        _delete(_set_aside(folder))
    return doomed


def rollback(checkpoints_dir: Path, step: int) -> list[Path]:
    """Delete the checkpoints above `step`, good or not, so that training goes on from there; return them, newest first.

    A kill in between leaves the rest of them, never one that looks committed and is not whole: calling again goes on.
    Not to be called while a save is under way.
    Raises: CheckpointError, with nothing deleted, if no good checkpoint would be left; OSError.
    """
    doomed = [folder for folder in steps(checkpoints_dir) if _step(folder) > step]
    if not doomed:
        return []
    left = next((folder for folder in steps(checkpoints_dir) if folder not in doomed and _is_good(folder)), None)
    if left is None:
        raise CheckpointError(f"{checkpoints_dir}: no good checkpoint of step {step} or before to roll back to")
    _point_latest_to(left)
    for folder in doomed:
        _delete(_set_aside(folder))
    return doomed


def _kept(sound: list[tuple[Path, Manifest]], keep: int, keep_every: int) -> set[Path]:
    kept = {folder for folder, _ in sound[:keep]}
    if keep_every:
        kept |= {folder for folder, manifest in sound if manifest.step % keep_every == 0}
    validated = [(manifest.val_loss, folder) for folder, manifest in sound if manifest.val_loss is not None]
    if validated:
        kept.add(min(validated, key=lambda pair: pair[0])[1])  # of equals the newest, which comes first
    return kept


def _written_last(checkpoints_dir: Path, sound: list[tuple[Path, Manifest]]) -> Path:
    """What `latest` names, not what has the newest date: the next attempt of a run may have another node's clock."""
    latest = checkpoints_dir / LATEST
    named = latest.with_name(os.readlink(latest)) if latest.is_symlink() else None
    return next((folder for folder, _ in sound if folder == named), sound[0][0])


def _sound(checkpoints_dir: Path) -> Iterator[tuple[Path, Manifest]]:
    """Checkpoints that pass every check short of reading their bytes, newest first."""
    for folder in steps(checkpoints_dir):
        try:
            yield folder, verify(folder, read_bytes=False)
        except CheckpointError:
            continue  # `newest_good` says why, when it matters


def _is_good(folder: Path) -> bool:
    try:
        verify(folder, read_bytes=True)
    except CheckpointError:
        return False
    return True


def _point_latest_to(folder: Path) -> None:
    latest, scratch = folder.parent / LATEST, folder.parent / _LATEST_SCRATCH
    if latest.is_symlink() and os.readlink(latest) == folder.name:
        return
    scratch.unlink(missing_ok=True)
    scratch.symlink_to(folder.name)
    os.replace(scratch, latest)
    _fsync_folder(folder.parent)


def _set_aside(folder: Path) -> Path:
    """Take the committed name away first: a kill while files are deleted leaves nothing that looks committed."""
    aside = _deleted_name(folder)
    _delete(aside)
    os.rename(folder, aside)
    _fsync_folder(folder.parent)
    return aside


def _delete(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _fsync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _folder_name(step: int) -> str:
    return f"step-{step:08d}"


def _deleted_name(folder: Path) -> Path:
    return folder.with_name(f".{folder.name}.deleted")


def _step(folder: Path) -> int:
    return int(folder.name.removeprefix("step-"))
