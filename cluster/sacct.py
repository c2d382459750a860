"""Stands in for sacct on a cluster without an accounting database: answers from the memory of slurmctld.

Run as a script, with the standard library alone: `python -I -S sacct.py SQUEUE [ARGUMENT...]`. A job is known for
MinJobAge seconds after its end. There is one line per job or array element, none per step (as with sacct -X), and a
state that has passed (NODE_FAIL or PREEMPTED before a requeue) is not remembered.
"""

import argparse
import subprocess
import sys
from typing import NoReturn

FIELDS = {
    "jobid": ("JobID", "%i"),
    "jobidraw": ("JobIDRaw", "%A"),
    "state": ("State", "%T"),
    "nodelist": ("NodeList", "%N"),
    "partition": ("Partition", "%P"),
    "user": ("User", "%u"),
    "submit": ("Submit", "%V"),
    "start": ("Start", "%S"),
    "end": ("End", "%e"),
    "elapsed": ("Elapsed", "%M"),
    "jobname": ("JobName", "%j"),
}
UNIT = "\x1f"  # between squeue's values: a job's name may hold anything that can be typed


class Parser(argparse.ArgumentParser):
    """Refuses in one line what real sacct has and this one does not."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"sacct (stand-in of a cluster without accounting): {message}\n")


def main(squeue: str, arguments: list[str]) -> int:
    """Print what `squeue` knows about jobs in sacct's format; the exit status."""
    parser = Parser(prog="sacct", allow_abbrev=False, description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("-j", "--jobs", action="append", default=[], metavar="ID,...")
    parser.add_argument("-o", "--format", default="JobID,JobName,Partition,State", metavar="FIELD,...")
    parser.add_argument("-P", "--parsable2", action="store_true")
    parser.add_argument("-n", "--noheader", action="store_true")
    parser.add_argument("-X", "--allocations", action="store_true", help="accepted: steps are never listed")
    options = parser.parse_args(arguments)
    names = [name.partition("%")[0].lower() for name in options.format.split(",")]
    if unknown := [name for name in names if name not in FIELDS]:
        parser.error(f"no field {unknown[0]}; there are {', '.join(title for title, _ in FIELDS.values())}")
    rows = _ask(squeue, options.jobs, [FIELDS[name][1] for name in names])
    for row in rows:
        if "nodelist" in names and not row[names.index("nodelist")]:
            row[names.index("nodelist")] = "None assigned"
    if not options.noheader:
        rows.insert(0, [FIELDS[name][0] for name in names])
    for row in rows:
        print("|".join(row) if options.parsable2 else " ".join(f"{value:<20}" for value in row).rstrip())  # noqa: T201
    return 0


def _ask(squeue: str, jobs: list[str], formats: list[str]) -> list[list[str]]:
    command = [squeue, "--all", "--noheader", "--states=all", "--sort=i", f"--format={UNIT.join(formats)}"]
    wanted = ",".join(jobs)
    done = subprocess.run([*command, f"--jobs={wanted}"] if wanted else command, capture_output=True, text=True)
    if done.returncode != 0 and "Invalid job id" not in done.stderr:  # an unknown job is an empty answer
        sys.stderr.write(done.stderr)
        raise SystemExit(done.returncode)
    return [line.split(UNIT) for line in done.stdout.splitlines()]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], sys.argv[2:]))
