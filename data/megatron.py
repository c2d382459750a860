"""Megatron indexed datasets that are there already, as a prepared dataset: looked through once and linked to.

The folder holds symbolic links with absolute paths, a copy of the tokenizer and the manifest. Links, since tokens may
be terabytes; symbolic, since a hard link cannot cross file systems; absolute, so that the folder may be moved. The
files must stay where they are: if they are moved or changed, opening the dataset says so.
"""

from pathlib import Path

from configs.errors import ConfigError, DataError
from data.build import write_manifest
from data.manifest import FORMAT_VERSION, SPLITS, Manifest, SourceRecord, SplitName, SplitRecord, TokenDtype, digest
from data.megatron_files import look_through, read_index
from data.piece_training import TRAINED
from data.place import Prepared, put_in_place
from data.progress import Report
from data.tokenizer import Tokenizer, check_eod, copy_tokenizer, describe, kind_of, open_tokenizer

Files = dict[SplitName, tuple[Path, Path]]
"""The `.bin` and `.idx` of each split."""


def link_megatron(
    train: str | Path,
    validation: str | Path,
    out: str | Path,
    *,
    tokenizer: str | Path,
    eod: str | None = None,
    force: bool = False,
    progress: bool = True,
) -> Prepared:
    """Make `out` the prepared dataset of two indexed datasets, each given by what comes before `.bin` and `.idx`.

    `tokenizer` is the one that made the tokens: `byte`, a SentencePiece model, a tokenizer.json or its folder. Every
    token is read once: ids must be of its vocabulary, and each document one sequence that its end of a document ends.

    Raises: ConfigError for a tokenizer to be trained; DataError for files that are missing, damaged or do not fit.
    """
    path = _tokenizer_path(tokenizer, eod)
    opened = open_tokenizer(path, eod)
    files: Files = {"train": _files(str(train)), "validation": _files(str(validation))}
    if files["train"] == files["validation"]:
        raise DataError(f"{train}: both splits are the same files: name another one for validation")
    every = [file for pair in files.values() for file in pair]
    if inside := [file for file in every if Path(out).resolve() in file.parents]:
        raise DataError(f"{out}: holds {inside[0].name}, which is to be linked: choose another folder")
    stats = [[str(file), file.stat().st_size, file.stat().st_mtime_ns] for file in every]
    recipe = digest([FORMAT_VERSION, "megatron", opened.hash, stats])

    def link(folder: Path, report: Report) -> Manifest:
        copied = None if path is None else copy_tokenizer(path, folder)
        dtype, splits = _look_through(files, opened, report)
        for name, pair in files.items():
            for file in pair:
                (folder / f"{name}{file.suffix}").symlink_to(file)
        manifest = Manifest(
            tokenizer=describe(opened, kind_of(path), copied),
            token_dtype=dtype,
            train=splits["train"],
            validation=splits["validation"],
            sources=[
                SourceRecord(input=str(files[name][0]), documents=splits[name].documents, bytes=None) for name in SPLITS
            ],
            validation_fraction=splits["validation"].documents / sum(split.documents for split in splits.values()),
            seed=0,
            recipe=recipe,
            fingerprint="",
        )
        return write_manifest(folder, manifest)

    return put_in_place(out, recipe, link, force=force, progress=progress)


def _tokenizer_path(name: str | Path, eod: str | None) -> Path | None:
    """The tokenizer's file or folder; None for bytes."""
    if str(name) in TRAINED:
        raise ConfigError(
            f"tokenizer = {name}: tokens that are there need the tokenizer that made them: byte or a file"
        )
    path = None if str(name) == "byte" else Path(name)
    if path is not None and not path.exists():
        raise ConfigError(f"tokenizer = {name}: must be byte, or the path of a .model file or of a tokenizer.json")
    check_eod(eod, path)
    return path


def _files(prefix: str) -> tuple[Path, Path]:
    found = Path(f"{prefix}.bin"), Path(f"{prefix}.idx")
    for path in found:
        if not path.is_file():
            raise DataError(f"{path}: no such file: a Megatron dataset is named by what comes before .bin and .idx")
    return found[0].resolve(), found[1].resolve()


def _look_through(
    files: Files, tokenizer: Tokenizer, report: Report
) -> tuple[TokenDtype, dict[SplitName, SplitRecord]]:
    """(type of the tokens, record of each split)."""
    indices = {name: read_index(idx_path, bin_path) for name, (bin_path, idx_path) in files.items()}
    (train, _), (validation, _) = indices["train"], indices["validation"]
    if train != validation:
        raise DataError(f"{files['validation'][1]}: tokens of type {validation}, the training split's are {train}")
    report.start("Checking tokens", sum(bin_path.stat().st_size for bin_path, _ in files.values()))
    splits: dict[SplitName, SplitRecord] = {}
    for name in SPLITS:
        done = sum(split.bin.size for split in splits.values())
        splits[name] = look_through(*files[name], train, indices[name][1], tokenizer, report, done)
    report.finish()
    if splits["train"].bin == splits["validation"].bin:
        raise DataError(f"{files['validation'][0]}: the same tokens as {files['train'][0]}: name others for validation")
    return train, splits
