"""Text on standard output, whatever that is: a terminal without Unicode, a full disk, a pipe that nobody reads."""

import errno
import io
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from configs.errors import ConfigError


def echo(text: str) -> None:
    """Write it at once. Raises: as `printing`."""
    with printing():
        sys.stdout.write(text)
        sys.stdout.flush()


@contextmanager
def printing() -> Iterator[None]:
    """Around what writes: characters that standard output cannot show become `?`.

    Raises: ConfigError if it cannot be written; BrokenPipeError, which ends the command quietly.
    """
    if isinstance(sys.stdout, io.TextIOWrapper) and sys.stdout.errors != "replace":
        sys.stdout.reconfigure(errors="replace")
    try:
        yield
    except OSError as error:
        if error.errno == errno.EPIPE:
            raise
        # What is left in the buffer would fail once more when Python ends.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise ConfigError(f"standard output: cannot be written: {error.strerror}") from None
