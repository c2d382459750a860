"""The commands about data."""

from pathlib import Path
from typing import Annotated

import typer

from configs.errors import ConfigError
from launcher.as_json import as_json as json


def prepare(
    inputs: Annotated[
        list[str] | None,
        typer.Argument(help="Text folders, globs, .jsonl, .jsonl.gz, .jsonl.zst, or `stdlib`.", metavar="INPUT..."),
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Folder of the dataset.")] = None,
    tokenizer: Annotated[str, typer.Option(help="byte, bpe, unigram, or a SentencePiece .model file.")] = "byte",
    vocab_size: Annotated[int, typer.Option(help="Pieces to train (bpe, unigram).", min=1)] = 4096,
    validation_fraction: Annotated[float, typer.Option(help="Share of documents kept for validation.")] = 0.1,
    max_bytes: Annotated[int | None, typer.Option(help="Take the leading documents up to this size.")] = None,
    workers: Annotated[int | None, typer.Option(help="Processes; default: the cores of this machine.", min=1)] = None,
    text_field: Annotated[str, typer.Option(help="Field of a .jsonl line that holds the text.")] = "text",
    seed: Annotated[int, typer.Option(help="Seed of the train/validation split.", min=0)] = 0,
    force: Annotated[bool, typer.Option("--force", help="Replace a dataset made with other settings.")] = False,
    check: Annotated[
        Path | None, typer.Option(help="Verify this dataset instead: read every byte and compare.", metavar="DIR")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a line.")] = False,
) -> None:
    """Tokenise a corpus into a dataset, or verify one.

    \b
    Examples:
      steadytrain prepare stdlib --out runs/data/stdlib-bytes
      steadytrain prepare books/ 'web/*.jsonl.zst' --tokenizer bpe --vocab-size 32000 --out data/books
      steadytrain prepare --check data/books

    JSON: {"out", "reused" (it was there), "vocab_size", "train": {"tokens", "documents"},
    "validation": {"tokens", "documents"}}; with --check {"out", "tokens", "fingerprint"}.

    Exit codes: 0 the dataset is there and whole, 2 no such input, a damaged dataset, or one made with other settings,
    130 interrupted.
    """
    if check is not None:
        if inputs or out is not None:
            raise ConfigError("command line: --check verifies a dataset and takes neither INPUT nor --out")
        _verify(check, as_json=as_json)
        return
    if not inputs:
        raise ConfigError("command line: INPUT: must name a folder, a glob, a .jsonl file or stdlib")
    if out is None:
        raise ConfigError("command line: --out: must be set, for example --out runs/data/stdlib-bytes")
    from data.prepare import prepare
    from launcher.train import sigterm_exits

    with sigterm_exits():
        dataset = prepare(
            inputs,
            out,
            tokenizer=tokenizer,
            vocab_size=vocab_size,
            validation_fraction=validation_fraction,
            max_bytes=max_bytes,
            workers=workers,
            text_field=text_field,
            seed=seed,
            force=force,
        )
    if as_json:
        splits = {
            "train": {"tokens": dataset.train_tokens, "documents": dataset.train_documents},
            "validation": {"tokens": dataset.validation_tokens, "documents": dataset.validation_documents},
        }
        typer.echo(json({"out": str(out), "reused": dataset.reused, "vocab_size": dataset.vocab_size} | splits))
        return
    typer.echo(
        f"{out}: {dataset.train_tokens:,} training tokens in {dataset.train_documents:,} documents, "
        f"{dataset.validation_tokens:,} validation tokens in {dataset.validation_documents:,}, "
        f"vocabulary {dataset.vocab_size:,}{' (was there already)' if dataset.reused else ''}"
    )


def _verify(folder: Path, *, as_json: bool) -> None:
    from data.dataset import verify

    manifest = verify(folder)
    tokens = manifest.train.tokens + manifest.validation.tokens
    if as_json:
        typer.echo(json({"out": str(folder), "tokens": tokens, "fingerprint": manifest.fingerprint}))
        return
    typer.echo(f"{folder}: complete and undamaged, {tokens:,} tokens, fingerprint {manifest.fingerprint}")
