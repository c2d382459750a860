"""Writing a text file all or nothing, for every room."""

import os
from pathlib import Path


def write_atomically(path: Path, text: str) -> None:
    """Write a file so that readers, and what is left after a crash, are the old one or the new one, whole."""
    scratch = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with scratch.open("w", encoding="utf-8") as stream:
        stream.write(text)
        stream.flush()
        os.fsync(stream.fileno())
    os.replace(scratch, path)
