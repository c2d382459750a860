"""What users should know of the checkpoint and the tokenizer that were taken: said wherever they are."""

from collections.abc import Iterable

import typer


def tell_passed_over(reasons: Iterable[str]) -> None:
    """A line on standard error for each damaged checkpoint: an older one was taken."""
    for reason in reasons:
        typer.echo(f"passed over: {reason}", err=True)


def tell_unchecked(reason: str | None) -> None:
    """A line on standard error if nothing but its size tells whether the tokenizer is the model's."""
    if reason is not None:
        typer.echo(f"the tokenizer is given by hand: {reason}", err=True)
