"""Slurm as our jobs meet it: clients, version, controller, the site's partitions and account, a job it would take."""

import getpass
import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from configs.sites import Site, load_site
from launcher.doctor.command import Answer, ask
from launcher.doctor.finding import Asked, Finding, ok, problem, warning

CLIENTS = ("sbatch", "srun", "squeue", "scancel", "scontrol", "sinfo", "sacct")
"""What submitting, watching, cancelling and requeueing call."""
SECONDS = 8.0
"""For one command. One that takes longer is of no use: `status` and requeueing wait for it."""
SILENT = "is the controller (slurmctld) up, and SLURM_CONF the right file? Ask the site's staff"
HERE = "go to a login node, use --cluster local, or `python -m cluster start` for a Slurm of your own"


@dataclass(frozen=True)
class Partition:
    """A line of sinfo."""

    name: str
    available: str
    nodes: int
    is_default: bool


def check(asked: Asked) -> Iterator[Finding]:
    """Stops at the first thing that is absent or broken: what follows needs it."""
    site = None if asked.cluster is None else load_site(asked.cluster)
    if site is not None and site.kind == "local":
        yield ok("Slurm", f"not needed by site {asked.cluster}")
        return
    stopped = clients(site is not None)
    if stopped is not None:
        yield stopped
        return
    version = ask(["scontrol", "--version"], SECONDS)
    if version.state != "answered":
        yield problem("Slurm", version.said, "the installation is broken: ask the site's staff, or mend PATH")
        return
    yield ok("Slurm", version.said.strip())
    found = controller(ask(["scontrol", "ping"], SECONDS))
    yield found
    if found.verdict == "problem":
        return
    listed = ask(["sinfo", "--noheader", "--format=%P|%a|%D"], SECONDS)
    if listed.state != "answered":
        yield problem("Slurm partitions", listed.said, SILENT)
        return
    found = partitions(_parse(listed.said), site)
    yield found
    yield accounts(_associations(), site)
    if site is not None and found.verdict != "problem":
        yield _job(site)


def clients(needed: bool) -> Finding | None:
    """None if all are there. `needed`: a site with Slurm was named."""
    missing = [name for name in CLIENTS if shutil.which(name) is None]
    if not missing:
        return None
    if len(missing) == len(CLIENTS):
        found = "not on this machine"
        return problem("Slurm", found, HERE) if needed else ok("Slurm", f"{found}: jobs run here (--cluster local)")
    fix = "load Slurm's module, or put all of its programs on PATH"
    return problem("Slurm", f"only in part on this machine: no {', '.join(missing)}", fix)


def controller(answer: Answer) -> Finding:
    """`scontrol ping`: one line per controller; a backup may be down."""
    if answer.state != "answered":
        down = [line.strip() for line in answer.output.splitlines() if "DOWN" in line]
        return problem("Slurm controller", down[0] if down else answer.said, SILENT)
    lines = [line.strip() for line in answer.said.splitlines() if line.strip()]
    if not any("is UP" in line for line in lines):
        return problem("Slurm controller", lines[0] if lines else "`scontrol ping` says nothing", SILENT)
    return ok("Slurm controller", "; ".join(lines))


def partitions(found: Sequence[Partition], site: Site | None) -> Finding:
    """Those of the site; without one, what there is."""
    check, shown = "Slurm partitions", _shown(found)
    if not found:
        return problem(check, "Slurm shows none", "ask the site's staff for a partition, or a group that may see one")
    if site is None:
        return ok(check, shown)
    wanted = (site.resources.partition or "").split(",") if site.resources.partition else []
    if not wanted:
        default = next((partition.name for partition in found if partition.is_default), None)
        if default is None:
            return problem(check, f"the site names none, and Slurm has no default among {shown}", "set --partition")
        return ok(check, f"{default} (Slurm's default); there are {shown}")
    known = {partition.name: partition for partition in found}
    absent = [name for name in wanted if name not in known]
    if absent:
        fix = "set resources.partition of the site, or --partition of submit, to one of them"
        return problem(check, f"no {', '.join(absent)}; there are {shown}", fix)
    closed = [name for name in wanted if known[name].available != "up"]
    if closed:
        fix = "wait, or choose another partition: a job there stays in the queue"
        return warning(check, f"{', '.join(closed)} is {known[closed[0]].available}", fix)
    return ok(check, _shown([known[name] for name in wanted]))


def accounts(answer: Answer, site: Site | None) -> Finding:
    """The user's associations; a Slurm without a database takes any account."""
    check, wanted = "Slurm account", None if site is None else site.resources.account
    if answer.state == "hung":
        return warning(check, answer.said, "Slurm's database (slurmdbd) does not answer: ask the site's staff")
    if answer.state != "answered":
        return ok(check, "not known: Slurm tells no accounts here (no slurmdbd, or no sacctmgr)")
    known = sorted({line.strip() for line in answer.said.splitlines() if line.strip()})
    if not known:
        return ok(check, "none recorded for this user")
    if wanted is not None and wanted not in known:
        fix = "set resources.account of the site, or --account of submit, to one of them"
        return problem(check, f"no {wanted} among yours: {', '.join(known)}", fix)
    return ok(check, wanted or f"yours: {', '.join(known)}")


def test_job(answer: Answer, *, nodes_are_down: bool) -> Finding:
    """What `sbatch --test-only` says of the site's job, which is not queued."""
    from launcher.jobs.executor import UNAVAILABLE, slurm_words

    check = "Slurm job"
    if answer.state == "answered":
        return ok(check, "Slurm would take a job of this site")
    if answer.state == "hung":
        return problem(check, answer.said, SILENT)
    words = slurm_words(answer.output)
    if UNAVAILABLE in words and nodes_are_down:
        return warning(check, f"{words}: nodes are down now", "`sinfo -R` says why; a job would wait for them")
    return problem(
        check, f"Slurm refuses a job of this site: {words}", "mend the site's file; `submit --dry-run` shows the script"
    )


def _job(site: Site) -> Finding:
    from launcher.jobs.executor import clean_environment, executor

    with tempfile.TemporaryDirectory() as folder, clean_environment():
        made = executor(site, name="doctor", folder=Path(folder), code=Path(folder), decide="true")
        script = Path(folder) / "doctor.sh"
        script.write_text(made.script())
        answer = ask(["sbatch", "--test-only", str(script)], SECONDS, dict(os.environ))
    down = ask(["sinfo", "--noheader", "--format=%D", "--states=down,drained,draining,fail,maint,reboot"], SECONDS)
    return test_job(answer, nodes_are_down=down.state == "answered" and bool(down.said.strip()))


def _parse(said: str) -> list[Partition]:
    """Partitions as sinfo lists them: a line for each, `*` behind the default."""
    fields = [line.strip().split("|") for line in said.splitlines() if line.count("|") == 2]
    return [Partition(name.rstrip("*"), state, int(nodes), name.endswith("*")) for name, state, nodes in fields]


def _shown(found: Sequence[Partition]) -> str:
    return ", ".join(f"{partition.name} ({partition.nodes} nodes)" for partition in found)


def _associations() -> Answer:
    """This user's accounts, a line for each."""
    whose = f"user={getpass.getuser()}"
    return ask(["sacctmgr", "--noheader", "--parsable2", "show", "associations", whose, "format=account"], SECONDS)
