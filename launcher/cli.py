"""The `steadytrain` command. Nothing heavy is imported before a command needs it: `--help` answers at once."""

from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from configs.commands import DIVERGED, INTERRUPTED, Commands
from configs.errors import ConfigError

if TYPE_CHECKING:
    from comparison.selection import Selection

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


@app.command()
def plan(
    config: Annotated[Path, typer.Argument(help="Configuration file.", metavar="CONFIG.yaml", show_default=False)],
    overrides: Annotated[
        list[str] | None, typer.Argument(help="Values that replace the file's.", metavar="[key.sub=value]...")
    ] = None,
    nodes: Annotated[int, typer.Option(help="Nodes.", min=1)] = 1,
    gpus_per_node: Annotated[int, typer.Option(help="GPUs on each node.", min=1)] = 8,
    device: Annotated[str, typer.Option(help="Kind of GPU: h100, a100, h200, ...")] = "h100",
    vocab_size: Annotated[
        int | None, typer.Option(help="Tokens of the vocabulary; default: that of the data.", min=2, show_default=False)
    ] = None,
    top: Annotated[int, typer.Option(help="Best layouts to show; 0: only the configured one.", min=0)] = 5,
    tokens: Annotated[
        float | None, typer.Option(help="Tokens to train; default: training.steps.", min=1, show_default=False)
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

    Exit codes: 0 planned (whether it fits or not), 2 a mistake in the configuration, or no such layout.
    """
    from launcher import plan as plans

    loaded, tokens_known = plans.load(config, overrides or [], vocab_size)
    where = plans.machine(device, nodes, gpus_per_node, efficiency, loaded.config.training.compile)
    if dry_run_rank is not None:
        typer.echo(plans.dry_run(loaded, tokens_known, where.ranks, dry_run_rank, as_json=as_json))
        return
    typer.echo(plans.plan(loaded, tokens_known, where, top=top, tokens=tokens, as_json=as_json))


@app.command()
def submit(
    config: Annotated[Path, typer.Argument(help="Configuration file.", metavar="CONFIG.yaml", show_default=False)],
    overrides: Annotated[
        list[str] | None, typer.Argument(help="Values that replace the file's.", metavar="[key.sub=value]...")
    ] = None,
    cluster: Annotated[str, typer.Option(help="A site of configs/sites, or a site's YAML file.")] = "local",
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


@app.command()
def status(
    paths: Annotated[
        list[Path] | None,
        typer.Argument(
            help="Folders of runs, of studies, or of several runs.", metavar="[PATH]...", show_default="runs"
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


@app.command()
def watch(
    run: Annotated[Path, typer.Argument(help="Folder of a run.", metavar="RUN", show_default=False)],
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


@app.command()
def pictures(
    run: Annotated[Path, typer.Argument(help="Folder of a run.", metavar="RUN", show_default=False)],
) -> None:
    """Draw a run's pictures, as it stands now: which head collapsed first, loss with its events, logits, spectra.

    \b
    Example:
      steadytrain pictures runs/tiny
    """
    from launcher.watch import require_run
    from monitoring.pictures import draw_pictures

    try:
        drawn = draw_pictures(require_run(run))
    except OSError as error:
        raise ConfigError(f"{error.filename}: {error.strerror}; the pictures were not drawn") from None
    typer.echo("\n".join(str(path) for path in drawn) or f"{run}: nothing to draw yet: it has trained no step")


@app.command()
def logs(
    run: Annotated[Path, typer.Argument(help="Folder of a run.", metavar="RUN", show_default=False)],
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


@app.command()
def cancel(
    runs: Annotated[
        list[Path], typer.Argument(help="Folders of runs, or of studies.", metavar="RUN...", show_default=False)
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
def sync(
    run: Annotated[Path, typer.Argument(help="Folder of a run.", metavar="RUN", show_default=False)],
) -> None:
    """Send MLflow what a run could not: points and files that were left, and how it ended.

    \b
    Example:
      steadytrain sync runs/tiny

    Exit codes: 0 all is delivered, 2 no tracked run, a run under way, or a store that does not take it.
    """
    from launcher.sync import sync as deliver

    typer.echo(deliver(run))


@app.command()
def spike(
    run: Annotated[Path, typer.Argument(help="Folder of a run.", metavar="RUN", show_default=False)],
    record: Annotated[
        str | None, typer.Argument(help="A record's id, or the step it begins with.", metavar="[ID]")
    ] = None,
    samples: Annotated[int, typer.Option(help="Samples of the batch whose text is shown.", min=0)] = 4,
    replay: Annotated[
        bool, typer.Option("--replay", help="Run the steps before it again and compare; the run stays as it is.")
    ] = False,
    layout: Annotated[
        str, typer.Option(help="With --replay: the run's own layout (same), one process (single), or both.")
    ] = "both",
) -> None:
    """Show what led to an alarm: which layer, head, matrix or rank moved first, and the text of the batch.

    Without an ID, the records of the run; if there is only one, that one. A picture of it is put beside it.

    \b
    Examples:
      steadytrain spike runs/tiny
      steadytrain spike runs/tiny 000123-loss_spike
      steadytrain spike runs/tiny 123 --replay

    Exit codes: 0 shown, 2 no run, no record or none of that id, 1 a rerun failed.
    """
    from rich.console import Console

    from launcher.spike import LAYOUTS, WIDTH, choose, find, listing, show

    if layout not in LAYOUTS:
        raise ConfigError(f"command line: --layout = {layout}: must be same, single or both")
    ids = find(run)
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


@app.command()
def sweep(
    study: Annotated[Path, typer.Argument(help="Study file.", metavar="STUDY.yaml", show_default=False)],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(help="Values that replace those of every trial.", metavar="[key.sub=value]..."),
    ] = None,
    jobs: Annotated[int | None, typer.Option(help="Trials at a time; default: what the machine holds.", min=1)] = None,
    recipes: Annotated[str | None, typer.Option(help="Only these recipes: a,b.", show_default=False)] = None,
    shapes: Annotated[str | None, typer.Option(help="Only these shapes: a,b.", show_default=False)] = None,
    learning_rates: Annotated[
        str | None, typer.Option(help="Only these learning rates: 1e-3,1e-2.", show_default=False)
    ] = None,
    seeds: Annotated[str | None, typer.Option(help="Only these seeds: 0,1.", show_default=False)] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would run; run nothing.")] = False,
    cluster: Annotated[
        str | None, typer.Option(help="Queue the trials on this site instead, as an array of jobs.", show_default=False)
    ] = None,
    nodes: Annotated[str | None, typer.Option(help="Nodes of each trial (with --cluster).")] = None,
    tasks_per_node: Annotated[int | None, typer.Option(help="Processes on each node (with --cluster).")] = None,
    time: Annotated[str | None, typer.Option(help="Time limit of each trial (with --cluster).")] = None,
    partition: Annotated[str | None, typer.Option(help="Partition (with --cluster).")] = None,
) -> None:
    """Run a study's trials (recipes x shapes x learning rates x seeds) here or on a cluster; resumes where it stopped.

    \b
    Examples:
      steadytrain sweep configs/studies/demo.yaml --jobs 2
      steadytrain sweep configs/studies/demo.yaml run.dir=runs/short training.steps=20
      steadytrain sweep configs/studies/stabilisers.yaml --dry-run
      steadytrain sweep configs/studies/stabilisers.yaml --recipes pre-ln,qk-norm --seeds 0
      steadytrain sweep configs/studies/demo.yaml --cluster mysite.yaml --jobs 8
    """
    from comparison.selection import Selection

    only = Selection(recipes, shapes, learning_rates, seeds)
    if dry_run:
        from comparison.plan import dry_run as plan

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


@app.command()
def compare(
    folder: Annotated[Path, typer.Argument(help="Folder of a study.", metavar="DIR", show_default=False)],
    against: Annotated[
        Path | None,
        typer.Option(
            help="Folder of another study: compare the two, recipe by recipe.", metavar="DIR", show_default=False
        ),
    ] = None,
) -> None:
    """Print a study's table and write its report: report.html and its pictures; or compare it with another study.

    \b
    Examples:
      steadytrain compare runs/demo
      steadytrain compare runs/demo --against runs/demo-with-warm-up
    """
    from rich.console import Console

    from comparison.analysis import analyse

    if against is not None:
        from comparison import against as two

        found = two.against(analyse(folder), analyse(against))
        page = two.write(found)
        Console(highlight=False).print(two.table(found))
        typer.echo(f"comparison: {page}")
        return
    from comparison.report import write
    from comparison.table import table

    analysis = analyse(folder)
    report = write(analysis)
    Console(highlight=False).print(table(analysis))
    typer.echo(f"report: {report}")
