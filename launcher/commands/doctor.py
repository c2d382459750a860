"""The command that says whether training will work here."""

from pathlib import Path
from typing import Annotated

import typer

from configs.commands import CRASH
from launcher import complete


def doctor(
    cluster: Annotated[
        str | None,
        typer.Option(
            help="Also whether jobs can go to this site: one of configs/sites, or a YAML file.",
            autocompletion=complete.sites,
        ),
    ] = None,
    runs: Annotated[Path, typer.Option(help="Folder of runs whose disk is tried.", metavar="DIR")] = Path("runs"),
    tracking_uri: Annotated[
        str | None,
        typer.Option(
            help="MLflow's store; default: MLFLOW_TRACKING_URI, or the one in the runs folder.", metavar="URI"
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Try what training needs here: packages, devices, processes, disk, MLflow, Slurm; a verdict and a fix for each.

    Nothing is changed: what it writes it takes away again. What is absent and was not asked for is ok.

    JSON: {"verdict": ok|warning|problem, "checks": [{"check", "verdict", "found", "fix" (or null)}, ...]}

    \b
    Examples:
      steadytrain doctor
      steadytrain doctor --cluster mysite.yaml --runs /scratch/me/runs
      steadytrain doctor --tracking-uri http://tracking:5000 --json

    Exit codes: 0 no problem (perhaps warnings), 1 at least one problem, 2 a mistake in the command line, 130
    interrupted.
    """
    from rich.console import Console

    from configs.sites import load_site
    from launcher.doctor import report
    from launcher.doctor.finding import Asked, Finding
    from launcher.doctor.groups import examine

    if cluster is not None:
        load_site(cluster)  # a wrong one is a mistake in the command line, not a finding
    console = Console(highlight=False, markup=False, emoji=False)
    findings: list[Finding] = []
    for finding in examine(Asked(str(runs), tracking_uri, cluster)):
        findings.append(finding)
        if not as_json:
            report.show(finding, console)
    if as_json:
        typer.echo(report.as_json(findings))
    else:
        console.print(report.summary(findings))
    if report.worst(findings) == "problem":
        raise typer.Exit(CRASH)
