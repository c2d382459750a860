"""The `steadytrain` command. Nothing heavy is imported before a command needs it: `--help` answers at once."""

from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from configs.errors import ConfigError, LaunchError, SteadytrainError

USER_ERROR, CRASH, DIVERGED, INTERRUPTED = 2, 1, 3, 130


class Commands(TyperGroup):
    """Turns the errors meant for users into their message on stderr and an exit code."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except SteadytrainError as error:
            typer.echo(str(error), err=True)
            raise typer.Exit(CRASH if isinstance(error, LaunchError) else USER_ERROR) from None
        except KeyboardInterrupt:
            typer.echo("interrupted", err=True)
            raise typer.Exit(INTERRUPTED) from None


app = typer.Typer(
    cls=Commands,
    help="Train language models that do not blow up: sigmaReparam with tensor and pipeline parallelism.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def main() -> None:
    """Entry point of the `steadytrain` command."""
    app(prog_name="steadytrain")


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"steadytrain {version('steadytrain')}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version and exit.", callback=_print_version, is_eager=True)
    ] = False,
) -> None:
    pass


@app.command()
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


@app.command()
def train(
    config: Annotated[Path, typer.Argument(help="Configuration file.", metavar="CONFIG.yaml", show_default=False)],
    overrides: Annotated[
        list[str] | None, typer.Argument(help="Values that replace the file's.", metavar="[key.sub=value]...")
    ] = None,
    nproc: Annotated[
        int | None,
        typer.Option(help="Processes on this machine; default: parallel.tp x pp x dp.", min=1, show_default=False),
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Delete a run of the same name first.")] = False,
    fresh: Annotated[
        bool, typer.Option("--fresh", help="Refuse a run of the same name instead of continuing it.")
    ] = False,
) -> None:
    """Train one model; starts the processes it needs unless torchrun or srun has started them.

    A run of the same name goes on from its newest good checkpoint (checkpoint.interval sets when they are saved), on
    the same layout or another; --fresh refuses that, --overwrite deletes the run and starts anew.

    \b
    Examples:
      steadytrain train configs/tiny.yaml
      steadytrain train configs/tiny.yaml parallel.tp=2 parallel.pp=2 run.name=tiny-4
      steadytrain train configs/tiny.yaml parallel.tp=2 --nproc 4
      torchrun --nproc-per-node 4 -m launcher train configs/tiny.yaml parallel.tp=2

    Exit codes: 0 finished, 1 crashed, 2 a mistake in the configuration or the data, 3 the run diverged,
    130 interrupted.
    """
    from launcher.train import train as launch

    outcome = launch(config, overrides or [], nproc=nproc, overwrite=overwrite, fresh=fresh)
    if outcome is None:
        return  # rank 0 reports
    typer.echo(outcome.line())
    if outcome.status == "diverged":
        raise typer.Exit(DIVERGED)


@app.command()
def checkpoints(
    run: Annotated[Path, typer.Argument(help="Folder of a run.", metavar="RUN", show_default=False)],
    verify: Annotated[bool, typer.Option("--verify", help="Read every byte and compare it with its checksum.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
) -> None:
    """List a run's checkpoints, newest first: what they are of, and whether they are whole.

    \b
    Examples:
      steadytrain checkpoints runs/tiny
      steadytrain checkpoints runs/tiny --verify
      steadytrain checkpoints runs/tiny --json

    Exit codes: 0 listed (a damaged one too: see its verdict), 2 no run, or a run without checkpoints.
    """
    import json
    from dataclasses import asdict

    from rich.console import Console

    from launcher.checkpoints import listed, table

    found = listed(run, read_bytes=verify)
    if as_json:
        typer.echo(json.dumps([asdict(entry) for entry in found], indent=2))
    else:
        Console(highlight=False).print(table(found))


@app.command()
def sweep(
    study: Annotated[Path, typer.Argument(help="Study file.", metavar="STUDY.yaml", show_default=False)],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(help="Values that replace those of every trial.", metavar="[key.sub=value]..."),
    ] = None,
    jobs: Annotated[int | None, typer.Option(help="Trials at a time; default: what the machine holds.", min=1)] = None,
) -> None:
    """Run a study's trials (recipes x learning rates x seeds) here; resumes where it stopped.

    \b
    Examples:
      steadytrain sweep configs/studies/demo.yaml --jobs 2
      steadytrain sweep configs/studies/demo.yaml run.dir=runs/short training.steps=20
    """
    from comparison.sweep import sweep

    folder = sweep(study, overrides or [], jobs=jobs)
    typer.echo(f"{folder}: study finished; its table and report: steadytrain compare {folder}")


@app.command()
def compare(
    folder: Annotated[Path, typer.Argument(help="Folder of a study.", metavar="DIR", show_default=False)],
) -> None:
    """Print a study's table and write its report: report.html and its pictures.

    \b
    Example:
      steadytrain compare runs/demo
    """
    from rich.console import Console

    from comparison.report import table, write

    report = write(folder)
    Console(highlight=False).print(table(folder))
    typer.echo(f"report: {report}")
