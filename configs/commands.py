"""What every command line of the project does with errors: one line on stderr and an exit code."""

from typing import Any

import typer
from typer.core import TyperGroup

from configs.errors import LaunchError, SteadytrainError

USER_ERROR, CRASH, DIVERGED, INTERRUPTED = 2, 1, 3, 130


class Commands(TyperGroup):
    """Turns the errors meant for users into their message on stderr and an exit code."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except SteadytrainError as error:
            typer.echo(str(error), err=True)
            raise typer.Exit(CRASH if isinstance(error, LaunchError) else USER_ERROR) from None
        except KeyboardInterrupt:
            typer.echo("interrupted", err=True)
            raise typer.Exit(INTERRUPTED) from None
