"""The commands about data."""

from pathlib import Path
from typing import Annotated

import typer

from configs.errors import ConfigError


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
) -> None:
    """Tokenise a corpus into a dataset, or verify one.

    \b
    Examples:
      steadytrain prepare stdlib --out runs/data/stdlib-bytes
      steadytrain prepare books/ 'web/*.jsonl.zst' --tokenizer bpe --vocab-size 32000 --out data/books
      steadytrain prepare --check data/books
    """
    if check is not None:
        if inputs or out is not None:
            raise ConfigError("command line: --check verifies a dataset and takes neither INPUT nor --out")
        _verify(check)
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
    typer.echo(
        f"{out}: {dataset.train_tokens:,} training tokens in {dataset.train_documents:,} documents, "
        f"{dataset.validation_tokens:,} validation tokens in {dataset.validation_documents:,}, "
        f"vocabulary {dataset.vocab_size:,}{' (was there already)' if dataset.reused else ''}"
    )


def _verify(folder: Path) -> None:
    from data.dataset import verify

    manifest = verify(folder)
    tokens = manifest.train.tokens + manifest.validation.tokens
    typer.echo(f"{folder}: complete and undamaged, {tokens:,} tokens, fingerprint {manifest.fingerprint}")
