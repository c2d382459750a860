"""The process of one group of checks: options as JSON on stdin, a line of JSON for each finding on stdout."""

import json
import os
import sys
from dataclasses import asdict

from launcher.doctor import devices, disk, machine, processes, slurm, software, tracking
from launcher.doctor.finding import Asked

CHECKS = {
    "software": software.check,
    "devices": devices.check,
    "processes": processes.check,
    "machine": machine.check,
    "disk": disk.check,
    "tracking": tracking.check,
    "slurm": slurm.check,
}


def main() -> None:
    """`python -m launcher.doctor.child GROUP`."""
    asked = Asked(**json.load(sys.stdin))
    findings = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print is none of our lines
    for finding in CHECKS[sys.argv[1]](asked):
        findings.write(json.dumps(asdict(finding)) + "\n")
        findings.flush()


if __name__ == "__main__":
    main()
