"""`python -m cluster`: install, start, inspect, break and stop a Slurm cluster on this machine."""

import os
import shlex
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from cluster import lab as labs
from cluster import packages
from configs.commands import Commands
from configs.errors import LaunchError

app = typer.Typer(
    cls=Commands,
    help="A real Slurm of several nodes on this machine, without root.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)

Folder = Annotated[
    Path | None,
    typer.Option(
        "--folder", help=f"Folder of the cluster; default ${packages.HOME_VARIABLE}/lab or cluster/.local/lab."
    ),
]


class Fate(StrEnum):
    """What can be done to a node."""

    kill = "kill"
    fail = "fail"
    resume = "resume"


@app.command()
def install(
    unpack: Annotated[bool, typer.Option("--unpack", help="Unpack the packages even if a Slurm is installed.")] = False,
) -> None:
    """Find Slurm, or unpack Debian's packages of it; nothing outside the folder is changed."""
    slurm = packages.install(unpack=unpack)
    typer.echo(f"Slurm {slurm.version()}: {slurm.prefix or slurm.programs['slurmctld'].parent}")


@app.command()
def start(
    nodes: Annotated[int, typer.Option(help="Nodes: 127.0.1.1, 127.0.1.2, ...")] = 4,
    cpus: Annotated[int, typer.Option(help="CPUs of each node, whatever this machine has.")] = 8,
    gpus: Annotated[int, typer.Option(help="Fake GPUs of each node.")] = 4,
    folder: Folder = None,
) -> None:
    """Start the cluster; returns when all nodes are idle."""
    lab = labs.start(_place(folder), nodes=nodes, cpus=cpus, gpus=gpus)
    typer.echo(f'{nodes} nodes idle: {lab.folder}\nTo use it here: eval "$({_invocation("env", folder)})"')


@app.command()
def stop(
    wipe: Annotated[
        bool, typer.Option("--wipe", help="Remove the cluster's folder too: logs, state, job ids.")
    ] = False,
    folder: Folder = None,
) -> None:
    """Cancel all jobs and end every process of the cluster."""
    lab = labs.attach(_place(folder))
    lab.stop(wipe=wipe)
    typer.echo(f"stopped: {lab.folder}")


@app.command()
def status(folder: Folder = None) -> None:
    """Show processes, nodes, partitions and jobs."""
    lab = labs.attach(_place(folder))
    if not lab.running:
        raise LaunchError(f"{lab.folder}: the cluster is stopped; `{_invocation('start', folder)}` starts it")
    for name, daemon in lab.daemons.items():
        typer.echo(f"{name:<12} {daemon.pid:>8}  {'up' if daemon.alive else 'DEAD'}")
    typer.echo()
    typer.echo(lab.run("sinfo", "--Node", "--format=%12N %10P %10T %5c %8m %8G %E"))
    typer.echo(lab.run("squeue", "--format=%10i %10P %12j %12T %8M %6D %R"), nl=False)


@app.command()
def env(folder: Folder = None) -> None:
    """Print the shell lines that make this cluster the one that srun, sbatch, ... talk to: `eval "$(... env)"`."""
    lab = labs.attach(_place(folder))
    if not lab.running:
        raise LaunchError(f"{lab.folder}: the cluster is stopped; `{_invocation('start', folder)}` starts it")
    leaked = sorted(name for name in os.environ if name.startswith(("SLURM", "SBATCH_", "SALLOC_", "SRUN_")))
    if leaked:
        typer.echo(f"unset {' '.join(leaked)}")  # of a job of another cluster, from within which this is called
    typer.echo(f"export SLURM_CONF={shlex.quote(str(lab.slurm_conf))}")
    typer.echo(f'export PATH={shlex.quote(str(lab.root / "bin"))}:"$PATH"')


@app.command()
def node(
    name: Annotated[str, typer.Argument(metavar="NODE", help="For example 127.0.1.2.")],
    fate: Annotated[Fate, typer.Argument(metavar="kill|fail|resume")],
    folder: Folder = None,
) -> None:
    """Kill a node with all its processes, set it down, or bring it back.

    \b
    kill    SIGKILL to all processes of the node; Slurm notices after 25 to 30 s.
    fail    Slurm is told that the node is down: its jobs end with NODE_FAIL at once.
    resume  The node works again.
    """
    lab = labs.attach(_place(folder))
    {Fate.kill: lab.kill_node, Fate.fail: lab.fail_node, Fate.resume: lab.start_node}[fate](name)
    typer.echo(f"{name}: {lab.state(name)}")


def _place(folder: Path | None) -> Path:
    return folder or packages.home() / "lab"


def _invocation(command: str, folder: Path | None) -> str:
    return shlex.join(["python", "-m", "cluster", command, *(["--folder", str(folder)] if folder else [])])


if __name__ == "__main__":
    app(prog_name="python -m cluster")
