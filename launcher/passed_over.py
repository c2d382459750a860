"""Checkpoints that were not taken because they are damaged: said wherever an older one was taken instead."""

from collections.abc import Iterable

import typer


def tell_passed_over(reasons: Iterable[str]) -> None:
    """A line on standard error for each."""
    for reason in reasons:
        typer.echo(f"passed over: {reason}", err=True)
