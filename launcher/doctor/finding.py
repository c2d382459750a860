"""What a check found, and what was asked of it."""

from dataclasses import dataclass
from typing import Literal

Verdict = Literal["ok", "warning", "problem"]


@dataclass(frozen=True)
class Finding:
    """One check's verdict. `problem`: something asked for will not work; `warning`: it works, but look at it."""

    check: str
    verdict: Verdict
    found: str
    fix: str | None = None
    """What to do about it, in one line; None where all is well."""


@dataclass(frozen=True)
class Asked:
    """The command's options, as the groups' processes get them."""

    runs: str
    """Folder of runs."""
    tracking_uri: str | None = None
    cluster: str | None = None
    """A site that `configs.sites.load_site` knows; None: none was named."""


def ok(check: str, found: str) -> Finding:
    """All is well, or what is absent was not asked for."""
    return Finding(check, "ok", found)


def warning(check: str, found: str, fix: str) -> Finding:
    """It works; it may be slow, or not what was measured."""
    return Finding(check, "warning", found, fix)


def problem(check: str, found: str, fix: str) -> Finding:
    """It does not work."""
    return Finding(check, "problem", found, fix)
