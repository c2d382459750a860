"""Prepare a dataset: tokenise a corpus into Megatron indexed datasets, all or nothing.

The folder holds `train.bin/.idx`, `validation.bin/.idx`, `manifest.json`, and `tokenizer.model` or `tokenizer.json`
unless the tokens are bytes. It is built beside its place (`.<name>.partial`) and renamed into it, so that what has its
name is complete.
"""

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock, Timeout

from configs.errors import ConfigError, DataError
from data.build import build
from data.corpus import find
from data.dataset import check
from data.indexed import flush
from data.manifest import MANIFEST, Manifest, read_manifest
from data.progress import progress_bar
from data.recipe import Recipe, SplitRule
from data.workers import available_cores


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


def prepare(
    inputs: Sequence[str | Path],
    out: str | Path,
    *,
    tokenizer: str | Path = "byte",
    eod: str | None = None,
    vocab_size: int = 4096,
    validation_fraction: float = 0.1,
    max_bytes: int | None = None,
    workers: int | None = None,
    text_field: str = "text",
    seed: int = 0,
    force: bool = False,
    progress: bool = True,
) -> Prepared:
    """Tokenise `inputs` (see `data.corpus.find`) into the folder `out`; the same bytes for any number of workers.

    A folder that the same recipe made is checked and left as it is (`reused`). Any other is refused, or replaced with
    `force` if it is a prepared dataset. `tokenizer` is `byte`, `bpe` or `unigram` (trained on the training split, with
    `vocab_size` pieces), or the path of a SentencePiece model, of a Hugging Face tokenizer.json or of its folder (whose
    documents `eod` ends, or else the eos_token beside it). `max_bytes` takes the leading documents that fit;
    `workers` defaults to the available cores.

    Raises: ConfigError for a setting out of range; DataError for input that cannot be read, a split without documents,
    or a folder in the way.
    """
    if workers is not None and workers < 1:
        raise ConfigError(f"workers = {workers}: must be at least 1")
    names = tuple(map(str, inputs))
    if not names:
        raise ConfigError("inputs: must name at least one file, folder, glob, or stdlib")
    recipe = Recipe(
        inputs=names,
        files=tuple(find(names)),
        tokenizer=str(tokenizer),
        eod=eod,
        vocab_size=vocab_size,
        split_rule=SplitRule(validation_fraction, seed),
        max_bytes=max_bytes,
        text_field=text_field,
    )
    out = Path(out) if Path(out).name not in ("", "..") else Path(out).resolve()
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(out.with_name(f".{out.name}.lock"), timeout=0):
            if _reusable(out, recipe, force=force):
                return Prepared(out, read_manifest(out), reused=True)
            manifest = _build_beside(out, recipe, workers or available_cores(), progress=progress)
    except Timeout as error:
        raise DataError(f"{out}: another process is preparing this folder: wait for it") from error
    except OSError as error:
        raise DataError(f"{error.filename or out}: cannot be written: {error.strerror or error}") from error
    return Prepared(out, manifest, reused=False)


def _reusable(out: Path, recipe: Recipe, *, force: bool) -> bool:
    """Whether `out` is what the recipe would make; False if it may be written.

    Raises: DataError if something else is in the way, or if the dataset there is damaged.
    """
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return False
    if not (out / MANIFEST).exists():
        raise DataError(f"{out}: exists and is not a prepared dataset: choose another folder, or remove it")
    if force:
        return False
    if read_manifest(out).recipe != recipe.hash:
        raise DataError(
            f"{out}: exists and was made from other inputs or settings: "
            "choose another folder, or replace it with --force"
        )
    check(out)
    return True


def _build_beside(out: Path, recipe: Recipe, workers: int, *, progress: bool) -> Manifest:
    """Build in a temporary folder and rename it to `out`. The caller holds the lock, so leftovers are nobody's."""
    partial, replaced = out.with_name(f".{out.name}.partial"), out.with_name(f".{out.name}.replaced")
    _remove(partial)
    try:
        partial.mkdir()
        with progress_bar(shown=progress) as report:
            manifest = build(partial, recipe, workers, report)
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
