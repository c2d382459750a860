"""The commands about studies."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from configs.errors import ConfigError
from launcher import complete
from launcher.as_json import as_json as json

if TYPE_CHECKING:
    from comparison.selection import Selection


def sweep(
    study: Annotated[
        Path,
        typer.Argument(
            help="Study file.", metavar="STUDY.yaml", show_default=False, autocompletion=complete.study_files
        ),
    ],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(help="Values that replace those of every trial.", metavar="[key.sub=value]..."),
    ] = None,
    jobs: Annotated[int | None, typer.Option(help="Trials at a time; default: what the machine holds.", min=1)] = None,
    recipes: Annotated[
        str | None, typer.Option(help="Only these recipes: a,b.", show_default=False, autocompletion=complete.recipes)
    ] = None,
    shapes: Annotated[str | None, typer.Option(help="Only these shapes: a,b.", show_default=False)] = None,
    learning_rates: Annotated[
        str | None, typer.Option(help="Only these learning rates: 1e-3,1e-2.", show_default=False)
    ] = None,
    seeds: Annotated[str | None, typer.Option(help="Only these seeds: 0,1.", show_default=False)] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would run; run nothing.")] = False,
    cluster: Annotated[
        str | None,
        typer.Option(
            help="Queue the trials on this site instead, as an array of jobs.",
            show_default=False,
            autocompletion=complete.sites,
        ),
    ] = None,
    nodes: Annotated[str | None, typer.Option(help="Nodes of each trial (with --cluster).")] = None,
    tasks_per_node: Annotated[int | None, typer.Option(help="Processes on each node (with --cluster).")] = None,
    time: Annotated[str | None, typer.Option(help="Time limit of each trial (with --cluster).")] = None,
    partition: Annotated[str | None, typer.Option(help="Partition (with --cluster).")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="With --dry-run: print JSON.")] = False,
) -> None:
    """Run a study's trials (recipes x shapes x learning rates x seeds) here or on a cluster; resumes where it stopped.

    \b
    Examples:
      steadytrain sweep configs/studies/demo.yaml --jobs 2
      steadytrain sweep configs/studies/demo.yaml run.dir=runs/short training.steps=20
      steadytrain sweep configs/studies/stabilisers.yaml --dry-run
      steadytrain sweep configs/studies/stabilisers.yaml --recipes pre-ln,qk-norm --seeds 0
      steadytrain sweep configs/studies/demo.yaml --cluster mysite.yaml --jobs 8

    JSON: {"study", "dir", "trials": [{"recipe", "shape", "learning_rate", "seed", "steps", "tokens",
    "has_result"}, ...]}

    Exit codes: 0 all trials have ended (or are queued), 1 a trial failed or Slurm refuses, 2 a mistake in the study or
    its data, 130 interrupted.
    """
    from comparison.selection import Selection

    only = Selection(recipes, shapes, learning_rates, seeds)
    if as_json and not dry_run:
        raise ConfigError("command line: --json: goes with --dry-run; of a study that has run, `steadytrain compare`")
    if dry_run:
        from comparison.plan import dry_run as plan
        from comparison.plan import planned

        if as_json:
            typer.echo(json(planned(study, overrides or [], only)))
        else:
            typer.echo("\n".join(plan(study, overrides or [], only)))
        return
    if cluster is not None:
        options = {"nodes": nodes, "tasks_per_node": tasks_per_node, "time": time, "partition": partition}
        _sweep_on(cluster, study, overrides or [], jobs, only, options)
        return
    from comparison.plan import require_data
    from comparison.sweep import sweep

    require_data(study, overrides or [], only)
    folder = sweep(study, overrides or [], jobs=jobs, only=only)
    ended = "study finished" if only == Selection() else "this part of the study is finished"
    typer.echo(f"{folder}: {ended}; its table and report: steadytrain compare {folder}")


def _sweep_on(
    cluster: str,
    study: Path,
    overrides: list[str],
    jobs: int | None,
    only: "Selection",
    options: dict[str, str | int | None],
) -> None:
    from launcher.jobs.sweep import sweep

    swept = sweep(study, overrides, cluster, options, at_once=jobs, only=only)
    kept = f", {swept.kept} have a result" if swept.kept else ""
    kept += f", {swept.under_way} under way already" if swept.under_way else ""
    if swept.compare_id is None:
        typer.echo(f"{swept.study_dir}: nothing to queue{kept}")
        return
    queued = f"{len(swept.ids)} trial{'' if len(swept.ids) == 1 else 's'} queued as job {swept.ids[0].split('_')[0]}"
    typer.echo(f"{queued}{kept}; job {swept.compare_id} compares them at the end; steadytrain status {swept.study_dir}")
    if swept.unwatched:
        typer.echo("stopping: is for a sweep on this machine, which looks on; on a cluster every trial runs to its end")


def compare(
    folder: Annotated[
        Path,
        typer.Argument(help="Folder of a study.", metavar="DIR", show_default=False, autocompletion=complete.studies),
    ],
    against: Annotated[
        Path | None,
        typer.Option(
            help="Folder of another study: compare the two, recipe by recipe.",
            metavar="DIR",
            show_default=False,
            autocompletion=complete.studies,
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
) -> None:
    """Print a study's table and write its report: report.html and its pictures; or compare it with another study.

    \b
    Examples:
      steadytrain compare runs/demo
      steadytrain compare runs/demo --against runs/demo-with-warm-up
      steadytrain compare runs/demo --json

    JSON: {"study", "report", "trials", "missing", "recipes": [{"recipe", "shape", "best_lr", "best_loss",
    "lr_sensitivity", "losses" (by learning rate), "collapsed", "blew_up", ...}, ...], "verdict": [sentence, ...]}
    with {"mean", "sd", "seeds", "bound"} for each number over seeds.

    Exit codes: 0 compared (whatever the verdict is), 2 no study there, or one without results.
    """
    from rich.console import Console

    from comparison.analysis import analyse

    if against is not None:
        from comparison import against as two
        from comparison.as_json import two as pair

        found = two.against(analyse(folder), analyse(against))
        page = two.write(found)
        if as_json:
            typer.echo(json(pair(found, page)))
            return
        Console(highlight=False).print(two.table(found))
        typer.echo(f"comparison: {page}")
        return
    from comparison.report import write
    from comparison.table import table

    analysis = analyse(folder)
    report = write(analysis)
    if as_json:
        from comparison.as_json import study as numbers

        typer.echo(json(numbers(analysis, report)))
        return
    Console(highlight=False).print(table(analysis))
    typer.echo(f"report: {report}")
