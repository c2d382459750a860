"""The process of one group of checks: options as JSON on stdin, a line of JSON for each finding on stdout."""

import json
import os
import sys
from dataclasses import asdict
from importlib import import_module

from launcher.doctor.finding import Asked


def main() -> None:
    """`python -m launcher.doctor.child GROUP`."""
    asked = Asked(**json.load(sys.stdin))
    findings = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print is none of our lines
    group = import_module(f"launcher.doctor.{sys.argv[1]}")  # alone: a package that is broken breaks its group only
    for finding in group.check(asked):
        findings.write(json.dumps(asdict(finding)) + "\n")
        findings.flush()


if __name__ == "__main__":
    main()
