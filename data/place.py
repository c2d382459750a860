"""Put a dataset into its place, all or nothing: built beside it (`.<name>.partial`) and renamed into it."""

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock, Timeout

from configs.errors import DataError
from data.dataset import check
from data.indexed import flush
from data.manifest import MANIFEST, Manifest, read_manifest
from data.progress import Report, progress_bar

Build = Callable[[Path, Report], Manifest]
"""Fills an empty folder, the manifest last."""


@dataclass(frozen=True)
class Prepared:
    """A prepared dataset."""

    folder: Path
    manifest: Manifest
    reused: bool
    """Whether it was there already, made by the same recipe."""

    @property
    def train_tokens(self) -> int:
        return self.manifest.train.tokens

    @property
    def validation_tokens(self) -> int:
        return self.manifest.validation.tokens

    @property
    def train_documents(self) -> int:
        return self.manifest.train.documents

    @property
    def validation_documents(self) -> int:
        return self.manifest.validation.documents

    @property
    def vocab_size(self) -> int:
        return self.manifest.tokenizer.vocab_size


def put_in_place(out: str | Path, recipe: str, build: Build, *, force: bool, progress: bool) -> Prepared:
    """The dataset of the recipe with the hash `recipe` in the folder `out`, which `build` makes if it is not there.

    Raises: DataError if something else is in the way, or the folder cannot be written; what `build` raises.
    """
    out = Path(out) if Path(out).name not in ("", "..") else Path(out).resolve()
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(out.with_name(f".{out.name}.lock"), timeout=0):
            if _reusable(out, recipe, force=force):
                return Prepared(out, read_manifest(out), reused=True)
            manifest = _build_beside(out, build, progress=progress)
    except Timeout as error:
        raise DataError(f"{out}: another process is preparing this folder: wait for it") from error
    except OSError as error:
        raise DataError(f"{error.filename or out}: cannot be written: {error.strerror or error}") from error
    return Prepared(out, manifest, reused=False)


def _reusable(out: Path, recipe: str, *, force: bool) -> bool:
    """Whether `out` is what the recipe would make; False if it may be written.

    Raises: DataError if something else is in the way, or if the dataset there is damaged.
    """
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return False
    if not (out / MANIFEST).exists():
        raise DataError(f"{out}: exists and is not a prepared dataset: choose another folder, or remove it")
    if force:
        return False
    if read_manifest(out).recipe != recipe:
        raise DataError(
            f"{out}: exists and was made from other inputs or settings: "
            "choose another folder, or replace it with --force"
        )
    check(out)
    return True


def _build_beside(out: Path, build: Build, *, progress: bool) -> Manifest:
    """Build in a temporary folder and rename it to `out`. The caller holds the lock, so leftovers are nobody's."""
    partial, replaced = out.with_name(f".{out.name}.partial"), out.with_name(f".{out.name}.replaced")
    _remove(partial)
    try:
        partial.mkdir()
        with progress_bar(shown=progress) as report:
            manifest = build(partial, report)
        _remove(replaced)
        if out.exists():
            out.rename(replaced)
        partial.rename(out)
        flush(out.parent)
    finally:
        _remove(partial)
    _remove(replaced)
    return manifest


def _remove(folder: Path) -> None:
    if folder.exists():
        shutil.rmtree(folder)
