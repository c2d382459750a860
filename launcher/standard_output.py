"""Text on standard output, whatever that is: a terminal without Unicode, a full disk, a pipe that nobody reads."""

import errno
import io
import os
import sys

from configs.errors import ConfigError


def echo(text: str) -> None:
    """Write it at once, characters that standard output cannot show as `?`.

    Raises: ConfigError if it cannot be written; BrokenPipeError, which ends the command quietly.
    """
    if isinstance(sys.stdout, io.TextIOWrapper) and sys.stdout.errors != "replace":
        sys.stdout.reconfigure(errors="replace")
    try:
        sys.stdout.write(text)
        sys.stdout.flush()
    except OSError as error:
        if error.errno == errno.EPIPE:
            raise
        # What is left in the buffer would fail once more when Python ends.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise ConfigError(f"standard output: cannot be written: {error.strerror}") from None
