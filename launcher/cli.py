"""The `steadytrain` command. Nothing heavy is imported before a command needs it: `--help` answers at once."""

from importlib.metadata import version
from typing import Annotated

import typer

from configs.commands import Commands
from launcher.commands import data, doctor, inference, jobs, models, runs, studies, training

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


COMMANDS = (
    data.prepare,
    training.train,
    training.plan,
    jobs.submit,
    jobs.status,
    runs.watch,
    runs.pictures,
    jobs.logs,
    jobs.cancel,
    runs.checkpoints,
    inference.generate,
    inference.evaluate,
    models.export,
    models.import_,
    runs.sync,
    runs.spike,
    studies.sweep,
    studies.compare,
    doctor.doctor,
)
"""In the order of the help."""
EXIT_CODES = "What exit codes mean: docs/exit-codes.md"

for _command in COMMANDS:
    app.command(_command.__name__.removesuffix("_"), epilog=EXIT_CODES)(_command)
