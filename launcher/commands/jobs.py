"""The commands about jobs, here and on clusters."""

from pathlib import Path
from typing import Annotated

import typer

from configs.commands import INTERRUPTED
from configs.errors import ConfigError
from launcher import complete
from launcher.as_json import as_json as json
from launcher.commands.arguments import ConfigFile, Overrides, RunFolder


def submit(
    config: ConfigFile,
    overrides: Overrides = None,
    cluster: Annotated[
        str, typer.Option(help="A site of configs/sites, or a site's YAML file.", autocompletion=complete.sites)
    ] = "local",
    nodes: Annotated[str | None, typer.Option(help="Nodes: 2, or 2-4 for as many as there are.")] = None,
    tasks_per_node: Annotated[int | None, typer.Option(help="Processes on each node; default: its GPUs.")] = None,
    gpus_per_node: Annotated[int | None, typer.Option(help="GPUs on each node.")] = None,
    cpus_per_task: Annotated[int | None, typer.Option(help="CPU cores of each process.")] = None,
    mem_gb: Annotated[float | None, typer.Option(help="Memory of each node in GB.")] = None,
    time: Annotated[str | None, typer.Option(help="Time limit: 90, 1:30:00 or 1-12:00.")] = None,
    partition: Annotated[str | None, typer.Option(help="Partition.")] = None,
    account: Annotated[str | None, typer.Option(help="Account.")] = None,
    qos: Annotated[str | None, typer.Option(help="Quality of service.")] = None,
    constraint: Annotated[str | None, typer.Option(help="Features of the nodes.")] = None,
    reservation: Annotated[str | None, typer.Option(help="Reservation.")] = None,
    exclude: Annotated[str | None, typer.Option(help="Nodes not to be used.")] = None,
    dependency: Annotated[str | None, typer.Option(help="Jobs to wait for, such as afterok:123.")] = None,
    container: Annotated[str | None, typer.Option(help="Command put before Python; replaces the site's.")] = None,
    retries: Annotated[int | None, typer.Option(help="Failed attempts before it is given up.", min=0)] = None,
    chain: Annotated[int, typer.Option(help="Queue so many jobs, each going on where the last stopped.", min=1)] = 1,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the batch script; queue nothing.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Delete a run of the same name first.")] = False,
    fresh: Annotated[
        bool, typer.Option("--fresh", help="Refuse a run of the same name instead of continuing it.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a line.")] = False,
) -> None:
    """Submit a training to Slurm (or, with --cluster local, to this machine in the background).

    It is saved and started again by itself when it is preempted, reaches its time limit or loses a node. What it runs
    is a copy of code and configuration: later edits do not reach it.

    \b
    Examples:
      steadytrain submit run.yaml --cluster mysite.yaml --nodes 2 --gpus-per-node 8 --time 12:00:00
      steadytrain submit run.yaml --cluster mysite.yaml --nodes 2 --dry-run
      steadytrain submit configs/tiny.yaml parallel.tp=2 --tasks-per-node 2

    JSON: {"jobs": [id, ...], "cluster", "run", "continued_from" (a checkpoint, or null)}

    Exit codes: 0 queued (or the script printed), 1 Slurm refuses or does not answer, 2 a mistake in the configuration,
    the site or the command line.
    """
    from shlex import quote

    if dry_run and as_json:
        raise ConfigError("command line: --dry-run, --json: only one of them; a batch script is no JSON")

    from launcher.jobs.request import read_request

    options = {
        "nodes": nodes, "tasks_per_node": tasks_per_node, "gpus_per_node": gpus_per_node,
        "cpus_per_task": cpus_per_task, "mem_gb": mem_gb, "time": time, "partition": partition, "account": account,
        "qos": qos, "constraint": constraint, "reservation": reservation, "exclude": exclude, "dependency": dependency,
    }  # fmt: skip
    request = read_request(cluster, options, config, overrides or [], container=container)
    from launcher.jobs import submit as jobs  # submitit is not needed to say what is wrong

    if dry_run:
        script = jobs.dry_run(request)
        typer.echo(script)
        jobs.validate(request, script)
        return
    submitted = jobs.submit(request, overwrite=overwrite, fresh=fresh, chain=chain, retries=retries)
    run_dir = submitted.job.run_dir
    if as_json:
        values = {"jobs": submitted.job.ids, "cluster": cluster, "run": run_dir}
        typer.echo(json(values | {"continued_from": submitted.continued_from}))
        return
    begins = f"continues from {submitted.continued_from}" if submitted.continued_from else "begins"
    typer.echo(
        f"job {', '.join(submitted.job.ids)} on {cluster}: {run_dir} {begins}; steadytrain status {quote(run_dir)}"
    )


def status(
    paths: Annotated[
        list[Path] | None,
        typer.Argument(
            help="Folders of runs, of studies, or of several runs.",
            metavar="[PATH]...",
            show_default="runs",
            autocompletion=complete.runs_and_studies,
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, with all fields, instead of a table.")] = False,
) -> None:
    """Say where runs stand: in the queue or running, how far, and what happened last; of one run, all its attempts.

    \b
    Examples:
      steadytrain status
      steadytrain status runs/tiny
      steadytrain status runs/demo --json

    JSON: [{"run", "name", "study", "state", "step", "steps", "loss", "tokens_per_s", "eta_s", "job_ids",
    "attempts", "last_event", ...}, ...]; of a single run also "attempt_list".

    Exit codes: 0 whatever the runs' states are, 2 no run there.
    """
    from rich.console import Console

    from launcher.jobs.status import WIDTH, records, report, statuses

    asked = paths or [Path("runs")]
    found = statuses(asked)
    if as_json:
        typer.echo(json(records(found)))
        return
    console = Console(highlight=False, markup=False, emoji=False)
    if not console.is_terminal:
        console.width = WIDTH
    console.print(report(found, asked))


def logs(
    run: RunFolder,
    rank: Annotated[str, typer.Option(help="Which process; all: each line with its rank before it.")] = "0",
    err: Annotated[bool, typer.Option("--err", help="Only what went to stderr: progress and errors.")] = False,
    attempt: Annotated[int | None, typer.Option(help="Only this attempt, from 1.", show_default=False)] = None,
    follow: Annotated[
        bool, typer.Option("--follow", "-f", help="Go on until the job has ended for good, over all its attempts.")
    ] = False,
) -> None:
    """Print what a job's processes wrote: stdout, then stderr, of all attempts.

    \b
    Examples:
      steadytrain logs runs/tiny
      steadytrain logs runs/tiny --rank 3 --err
      steadytrain logs runs/tiny -f --rank all

    Exit codes: 0 printed, 2 no job there, or no such rank or attempt, 130 interrupted (the usual way to leave -f).
    """
    from launcher.jobs.logs import follow_logs, print_logs

    if rank != "all" and not rank.isdecimal():
        raise ConfigError(f"--rank = {rank}: must be a rank from 0, or all")
    if follow and attempt is not None:
        raise ConfigError("command line: --follow, --attempt: only one of them; --follow goes over all attempts")
    number = None if rank == "all" else int(rank)

    def say(text: str) -> None:
        typer.echo(text, nl=False)

    if not follow:
        print_logs(run, say, rank=number, errors_only=err, attempt=attempt)
        return
    try:
        follow_logs(run, say, rank=number, errors_only=err)
    except KeyboardInterrupt:  # the usual way to leave: nothing to be said about it
        raise typer.Exit(INTERRUPTED) from None


def cancel(
    runs: Annotated[
        list[Path],
        typer.Argument(
            help="Folders of runs, or of studies.",
            metavar="RUN...",
            show_default=False,
            autocompletion=complete.runs_and_studies,
        ),
    ],
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of lines.")] = False,
) -> None:
    """End the jobs of runs, or of all trials of a study, queued or running; one that has ended stays as it is.

    \b
    Examples:
      steadytrain cancel runs/tiny
      steadytrain cancel runs/study

    JSON: [{"run", "was" (its state before), "cancelled": [job id, ...], "not_ended": [Slurm's state, ...]}, ...]

    Exit codes: 0 cancelled, or nothing to cancel, 1 Slurm refuses or does not answer, 2 no job there.
    """
    from dataclasses import asdict

    from launcher.jobs.cancel import cancel as cancel_jobs
    from launcher.jobs.cancel import what_follows

    found = cancel_jobs(runs)
    if as_json:
        typer.echo(json([asdict(entry) for entry in found]))
        return
    for line in [*(entry.line() for entry in found), *what_follows(runs, found)]:
        typer.echo(line)
