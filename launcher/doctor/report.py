"""The findings as lines of a terminal, and as JSON."""

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict

from rich.console import Console
from rich.text import Text

from launcher.doctor.finding import Finding, Verdict

STYLES: dict[Verdict, str] = {"ok": "green", "warning": "yellow", "problem": "red"}
WIDTH = max(map(len, STYLES)) + 2
CHECK = 20
"""Columns of verdict and check."""


def worst(findings: Sequence[Finding]) -> Verdict:
    """The verdict on all."""
    verdicts = {finding.verdict for finding in findings}
    return "problem" if "problem" in verdicts else "warning" if "warning" in verdicts else "ok"


def show(finding: Finding, console: Console) -> None:
    """One line, and one for the fix."""
    indent = " " * (WIDTH + CHECK)
    text = Text(f"{finding.verdict:<{WIDTH}}", STYLES[finding.verdict])
    text.append(f"{finding.check:<{CHECK}}{finding.found}", "default")
    console.print(text, soft_wrap=True)
    if finding.fix is not None:
        console.print(Text(f"{indent}fix: {finding.fix}"), soft_wrap=True)


def summary(findings: Sequence[Finding]) -> str:
    """The last line."""
    counts = Counter(finding.verdict for finding in findings)
    return f"{len(findings)} checks: {_count(counts['problem'], 'problem')}, {_count(counts['warning'], 'warning')}"


def as_json(findings: Sequence[Finding]) -> str:
    """The schema that the command's help tells."""
    document = {"verdict": worst(findings), "checks": [asdict(finding) for finding in findings]}
    return json.dumps(document, indent=2)


def _count(count: int, word: str) -> str:
    return f"{count or 'no'} {word}{'' if count == 1 else 's'}"
