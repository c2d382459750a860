"""The commands about data."""

import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

from configs.errors import ConfigError, DataError
from launcher.as_json import as_json as json

TEXT_OPTIONS = ("vocab_size", "validation_fraction", "max_bytes", "workers", "text_field", "seed")
"""What counts for text only, not for tokens that are there."""


def prepare(
    context: typer.Context,
    inputs: Annotated[
        list[str] | None,
        typer.Argument(
            help="Text folders, globs, .jsonl(.gz|.zst), .parquet, saved datasets, or `stdlib`.", metavar="INPUT..."
        ),
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Folder of the dataset.")] = None,
    tokenizer: Annotated[
        str, typer.Option(help="byte, bpe, unigram, a SentencePiece .model file, a tokenizer.json or its folder.")
    ] = "byte",
    eod: Annotated[
        str | None,
        typer.Option(help="Token that ends documents (tokenizer.json; default: its eos_token).", metavar="TOKEN"),
    ] = None,
    vocab_size: Annotated[int, typer.Option(help="Pieces to train (bpe, unigram).", min=1)] = 4096,
    validation_fraction: Annotated[float, typer.Option(help="Share of documents kept for validation.")] = 0.1,
    max_bytes: Annotated[int | None, typer.Option(help="Take the leading documents up to this size.")] = None,
    workers: Annotated[int | None, typer.Option(help="Processes; default: the cores of this machine.", min=1)] = None,
    text_field: Annotated[str, typer.Option(help="Field of a .jsonl line, or column, that holds the text.")] = "text",
    seed: Annotated[int, typer.Option(help="Seed of the train/validation split.", min=0)] = 0,
    force: Annotated[bool, typer.Option("--force", help="Replace a dataset made with other settings.")] = False,
    megatron_train: Annotated[
        Path | None,
        typer.Option(help="Instead of INPUT: tokens that are there, PREFIX.bin and .idx.", metavar="PREFIX"),
    ] = None,
    megatron_validation: Annotated[Path | None, typer.Option(help="The same for validation.", metavar="PREFIX")] = None,
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
      steadytrain prepare web.parquet saved/train --text-field body --tokenizer llama/ --out data/web
      steadytrain prepare --megatron-train a --megatron-validation b --tokenizer a.model --out data/a
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
    linked = _megatron_prefixes(megatron_train, megatron_validation)
    if linked and inputs:
        raise ConfigError("command line: --megatron-train takes tokens that are there and no INPUT")
    if linked:
        _refuse(context, TEXT_OPTIONS, "--megatron-train takes tokens as they are")
    if not linked and not inputs:
        raise ConfigError("command line: INPUT: must name a folder, a glob, a .jsonl file or stdlib")
    if out is None:
        raise ConfigError("command line: --out: must be set, for example --out runs/data/stdlib-bytes")
    from data.megatron import link_megatron
    from data.prepare import prepare
    from launcher.train import sigterm_exits

    with sigterm_exits(), _named_as_options():
        if linked:
            dataset = link_megatron(*linked, out, tokenizer=tokenizer, eod=eod, force=force)
        else:
            dataset = prepare(
                inputs or [],
                out,
                tokenizer=tokenizer,
                eod=eod,
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


@contextmanager
def _named_as_options() -> Iterator[None]:
    """Settings in messages (`max_bytes = 0: ...`) under the names of the options that set them."""
    settings = "|".join((*TEXT_OPTIONS, "tokenizer", "eod"))
    try:
        yield
    except (ConfigError, DataError) as error:
        message = re.sub(rf"(?<![\w-])({settings})(?= = )", lambda found: _option(found[1]), str(error))
        raise type(error)(f"command line: {message}" if message.startswith("--") else message) from None


def _option(name: str) -> str:
    return "--" + name.replace("_", "-")


def _refuse(context: typer.Context, options: Iterable[str], why: str) -> None:
    sources = {name: context.get_parameter_source(name) for name in options}
    given = [name for name, source in sources.items() if source is not None and source.name == "COMMANDLINE"]
    if given:
        raise ConfigError(f"command line: {_option(given[0])}: must be left out: {why}")


def _megatron_prefixes(train: Path | None, validation: Path | None) -> tuple[Path, Path] | None:
    if train is None and validation is None:
        return None
    if train is None or validation is None:
        raise ConfigError("command line: --megatron-train and --megatron-validation: must be given together")
    return train, validation


def _verify(folder: Path, *, as_json: bool) -> None:
    from data.dataset import verify

    manifest = verify(folder)
    tokens = manifest.train.tokens + manifest.validation.tokens
    if as_json:
        typer.echo(json({"out": str(folder), "tokens": tokens, "fingerprint": manifest.fingerprint}))
        return
    typer.echo(f"{folder}: complete and undamaged, {tokens:,} tokens, fingerprint {manifest.fingerprint}")
