"""The commands about jobs, here and on clusters."""

from pathlib import Path
from typing import Annotated

import typer

from configs.commands import INTERRUPTED
from configs.errors import ConfigError
from launcher import complete


def submit(
    config: Annotated[
        Path,
        typer.Argument(
            help="Configuration file.",
            metavar="CONFIG.yaml",
            show_default=False,
            autocompletion=complete.config_files,
        ),
    ],
    overrides: Annotated[
        list[str] | None, typer.Argument(help="Values that replace the file's.", metavar="[key.sub=value]...")
    ] = None,
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
) -> None:
    """Submit a training to Slurm (or, with --cluster local, to this machine in the background).

    It is saved and started again by itself when it is preempted, reaches its time limit or loses a node. What it runs
    is a copy of code and configuration: later edits do not reach it.

    \b
    Examples:
      steadytrain submit run.yaml --cluster mysite.yaml --nodes 2 --gpus-per-node 8 --time 12:00:00
      steadytrain submit run.yaml --cluster mysite.yaml --nodes 2 --dry-run
      steadytrain submit configs/tiny.yaml parallel.tp=2 --tasks-per-node 2
    """
    from shlex import quote

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

    Exit codes: 0 whatever the runs' states are, 2 no run there.
    """
    import json

    from rich.console import Console

    from launcher.jobs.status import WIDTH, records, report, statuses

    asked = paths or [Path("runs")]
    found = statuses(asked)
    if as_json:
        typer.echo(json.dumps(records(found), indent=2))
        return
    console = Console(highlight=False, markup=False, emoji=False)
    if not console.is_terminal:
        console.width = WIDTH
    console.print(report(found, asked))


def logs(
    run: Annotated[
        Path,
        typer.Argument(help="Folder of a run.", metavar="RUN", show_default=False, autocompletion=complete.runs),
    ],
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
) -> None:
    """End the jobs of runs, or of all trials of a study, queued or running; one that has ended stays as it is.

    \b
    Examples:
      steadytrain cancel runs/tiny
      steadytrain cancel runs/study
    """
    from launcher.jobs.cancel import cancel as cancel_jobs

    for line in cancel_jobs(runs):
        typer.echo(line)
