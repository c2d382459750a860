"""The commands that train a model, and that say what training one takes."""

from typing import Annotated

import typer

from configs.commands import DIVERGED
from launcher import complete
from launcher.commands.arguments import ConfigFile, Overrides


def train(
    config: ConfigFile,
    overrides: Overrides = None,
    nproc: Annotated[
        int | None,
        typer.Option(help="Processes on this machine; default: parallel.tp x pp x dp.", min=1, show_default=False),
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Delete a run of the same name first.")] = False,
    fresh: Annotated[
        bool, typer.Option("--fresh", help="Refuse a run of the same name instead of continuing it.")
    ] = False,
    profile: Annotated[
        bool, typer.Option("--profile", help="Trace a few steps (profile.first, profile.steps) into the run's folder.")
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
      steadytrain train configs/tiny.yaml --profile profile.steps=2
      torchrun --nproc-per-node 4 -m launcher train configs/tiny.yaml parallel.tp=2

    Exit codes: 0 finished, 1 crashed, 2 a mistake in the configuration or the data, 3 the run diverged,
    130 interrupted.
    """
    from launcher.train import train as launch

    wanted = [*(overrides or []), *(["profile.enabled=true"] if profile else [])]
    outcome = launch(config, wanted, nproc=nproc, overwrite=overwrite, fresh=fresh)
    if outcome is None:
        return  # rank 0 reports
    typer.echo(outcome.line())
    if outcome.status == "diverged":
        raise typer.Exit(DIVERGED)


def plan(
    config: ConfigFile,
    overrides: Overrides = None,
    nodes: Annotated[int, typer.Option(help="Nodes.", min=1)] = 1,
    gpus_per_node: Annotated[int, typer.Option(help="GPUs on each node.", min=1)] = 8,
    device: Annotated[
        str, typer.Option(help="Kind of GPU: h100, a100, h200, ...", autocompletion=complete.devices)
    ] = "h100",
    vocab_size: Annotated[
        int | None,
        typer.Option(help="Tokens of the vocabulary; default: that of the data.", min=2, max=2**22, show_default=False),
    ] = None,
    top: Annotated[int, typer.Option(help="Best layouts to show; 0: only the configured one.", min=0)] = 5,
    tokens: Annotated[
        float | None,
        typer.Option(help="Tokens to train; default: training.steps.", min=1, max=1e18, show_default=False),
    ] = None,
    efficiency: Annotated[
        float | None,
        typer.Option(help="Share of the peak rate in matrix products.", min=0.01, max=1, show_default=False),
    ] = None,
    dry_run_rank: Annotated[
        str | None,
        typer.Option(help="Build and check this rank instead: 0, 1, ..., first, middle or last.", show_default=False),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Say what a job would need on so many GPUs: memory, communication, time, and the best layouts; start nothing.

    \b
    Examples:
      steadytrain plan configs/models/8b.yaml training.global_batch_size=64 --vocab-size 128256
      steadytrain plan run.yaml parallel.tp=8 --nodes 128 --device h200 --tokens 1e12
      steadytrain plan run.yaml parallel.tp=8 parallel.pp=8 --nodes 128 --dry-run-rank middle

    JSON: {"configured": a layout, "layouts": [a layout, ...], "too_large": [a line, ...], "refused": {rule: count}}; a
    layout is {"layout", "memory_bytes", "communication", "step_seconds", "bubble", "tokens_per_s", "mfu", ...}.

    Exit codes: 0 planned (whether it fits or not), 2 a mistake in the configuration, or no such layout.
    """
    from launcher import plan as plans

    loaded, tokens_known = plans.load(config, overrides or [], vocab_size)
    where = plans.machine(device, nodes, gpus_per_node, efficiency, loaded.config.training.compile)
    if dry_run_rank is not None:
        typer.echo(plans.dry_run(loaded, tokens_known, where.ranks, dry_run_rank, as_json=as_json))
        return
    typer.echo(plans.plan(loaded, tokens_known, where, top=top, tokens=tokens, as_json=as_json))
