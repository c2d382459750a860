"""The commands that look at a run and at what it left."""

from typing import Annotated

import typer

from configs.commands import INTERRUPTED
from configs.errors import ConfigError
from launcher import complete
from launcher.as_json import as_json as json
from launcher.commands.arguments import RunFolder


def watch(
    run: RunFolder,
    once: Annotated[bool, typer.Option("--once", help="Print how it stands now, and end.")] = False,
    interval: Annotated[float, typer.Option(help="Seconds between looks.", min=0.1, max=3600)] = 1.0,
) -> None:
    """Watch a run in the terminal: loss, attention of every layer, what moved first, alarms and events.

    It ends with the run. Where the output is no terminal, it prints how the run stands now, and ends. It writes
    nothing: any number of people may watch a run.

    \b
    Examples:
      steadytrain watch runs/tiny
      steadytrain watch runs/tiny --once

    Exit codes: 0 the run has ended (or was shown once), 2 no run there, 130 interrupted (the usual way to leave).
    """
    from rich.console import Console

    from launcher.train import sigterm_exits
    from launcher.watch import watch as show

    try:
        with sigterm_exits():  # the terminal is given back as it was
            show(run, Console(highlight=False, markup=False, emoji=False), once=once, interval=interval)
    except KeyboardInterrupt:  # the usual way to leave: nothing to be said about it
        raise typer.Exit(INTERRUPTED) from None
    except PermissionError as error:  # a run of somebody else's
        raise ConfigError(f"{error.filename}: cannot be read: {error.strerror}") from None


def pictures(
    run: RunFolder,
) -> None:
    """Draw a run's pictures, as it stands now: which head collapsed first, loss with its events, logits, spectra.

    \b
    Examples:
      steadytrain pictures runs/tiny

    Exit codes: 0 drawn (the paths are printed), 2 no run there, or it cannot be written.
    """
    from launcher.watch import require_run
    from monitoring.pictures import draw_pictures

    try:
        drawn = draw_pictures(require_run(run))
    except OSError as error:
        raise ConfigError(f"{error.filename}: {error.strerror}; the pictures were not drawn") from None
    typer.echo("\n".join(str(path) for path in drawn) or f"{run}: nothing to draw yet: it has trained no step")


def checkpoints(
    run: RunFolder,
    verify: Annotated[bool, typer.Option("--verify", help="Read every byte and compare it with its checksum.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
) -> None:
    """List a run's checkpoints, newest first: what they are of, and whether they are whole.

    \b
    Examples:
      steadytrain checkpoints runs/tiny
      steadytrain checkpoints runs/tiny --verify
      steadytrain checkpoints runs/tiny --json

    JSON: [{"path", "step", "good", "verdict", "tokens", "bytes", "created" (seconds since 1970), "layout",
    "val_loss"}, ...]

    Exit codes: 0 listed (a damaged one too: see its verdict), 2 no run, or a run without checkpoints.
    """
    from dataclasses import asdict

    from rich.console import Console

    from launcher.checkpoints import listed, table

    found = listed(run, read_bytes=verify)
    if as_json:
        typer.echo(json([asdict(entry) for entry in found]))
    else:
        Console(highlight=False).print(table(found))


def spike(
    run: RunFolder,
    record: Annotated[
        str | None,
        typer.Argument(
            help="A record's id, or the step it begins with.", metavar="[ID]", autocompletion=complete.spikes
        ),
    ] = None,
    samples: Annotated[int, typer.Option(help="Samples of the batch whose text is shown.", min=0)] = 4,
    replay: Annotated[
        bool, typer.Option("--replay", help="Run the steps before it again and compare; the run stays as it is.")
    ] = False,
    layout: Annotated[
        str, typer.Option(help="With --replay: the run's own layout (same), one process (single), or both.")
    ] = "both",
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON; neither the batch nor a picture.")] = False,
) -> None:
    """Show what led to an alarm: which layer, head, matrix or rank moved first, and the text of the batch.

    Without an ID, the records of the run; if there is only one, that one. A picture of it is put beside it.

    \b
    Examples:
      steadytrain spike runs/tiny
      steadytrain spike runs/tiny 000123-loss_spike
      steadytrain spike runs/tiny 123 --replay
      steadytrain spike runs/tiny --json

    JSON: [{"id", "step", "severity", "detector", "where", "reason"}, ...] without an ID, whatever their number;
    with one, that record, and its "conclusion" and "findings": [{"quantity", "where", "step", "z", "before",
    "value", "sentence"}, ...].

    Exit codes: 0 shown, 2 no run, no record or none of that id, 1 a rerun failed.
    """
    from rich.console import Console

    from launcher.spike import LAYOUTS, WIDTH, choose, examined, find, listed, listing, show

    if layout not in LAYOUTS:
        raise ConfigError(f"command line: --layout = {layout}: must be same, single or both")
    if as_json and replay:
        raise ConfigError("command line: --json, --replay: only one of them")
    ids = find(run)
    if as_json:
        typer.echo(json(listed(run, ids) if record is None else examined(run, choose(run, ids, record))))
        return
    console = Console(highlight=False, markup=False, emoji=False)
    if not console.is_terminal:
        console.width = WIDTH
    if record is None and len(ids) > 1:
        if replay:
            raise ConfigError(f"command line: --replay: of which record? {run} has {', '.join(ids)}")
        console.print(listing(run, ids))
        return
    name = ids[0] if record is None else choose(run, ids, record)
    show(run, name, console, samples=samples, replay=replay, layout=layout)


def sync(
    run: RunFolder,
) -> None:
    """Send MLflow what a run could not: points and files that were left, and how it ended.

    \b
    Examples:
      steadytrain sync runs/tiny

    Exit codes: 0 all is delivered, 2 no tracked run, a run under way, or a store that does not take it.
    """
    from launcher.sync import sync as deliver

    typer.echo(deliver(run))
