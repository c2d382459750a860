"""An SQLite tracking store, looked at without MLflow, which would create or mend what it does not find."""

import os
import sqlite3
import tempfile
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from urllib.parse import quote

from launcher.doctor.finding import Finding, ok, problem, warning

SECONDS_TO_READ, SECONDS_TO_LOCK = 5.0, 3.0
NAME, WRITING = "MLflow store", "MLflow writing"
CORRUPT = "move it away: the next run makes a new one, and `steadytrain sync RUN` sends a run that was not delivered"
UNWRITABLE = "look at its owner and mode and those of its folder, or choose another: tracking.uri, MLFLOW_TRACKING_URI"


def check_file(path: Path) -> Iterator[Finding]:
    """Stops at the first problem."""
    try:
        is_there = path.exists()
    except OSError as error:  # a folder on the way that is not ours to enter
        yield problem(NAME, f"{path}: cannot be read: {error.strerror}", UNWRITABLE)
        return
    if not is_there:
        yield _absent(path)
        return
    try:
        with closing(sqlite3.connect(f"file:{quote(str(path))}?mode=rw", uri=True, timeout=SECONDS_TO_LOCK)) as base:
            base.isolation_level = None
            found = _reading(path, base)
            yield found
            if found.verdict == "ok":
                yield _writing(path, base)
    except sqlite3.OperationalError as error:
        yield _complaint(path, error)
    except sqlite3.DatabaseError as error:  # its superclass: no database, or a damaged one
        yield problem(NAME, f"{path}: {error}", CORRUPT)


def has_tables(path: Path) -> bool:
    """Whether there is anything in it: MLflow would make the tables of an empty one."""
    return path.is_file() and path.stat().st_size > 0


def _absent(path: Path) -> Finding:
    folder = path.parent
    while not folder.exists():
        folder = folder.parent
    try:
        with tempfile.TemporaryFile(dir=folder):
            return ok(NAME, f"{path} is not there yet: the first run makes it")
    except OSError as error:
        return problem(NAME, f"{path} cannot be made: {folder}: {error.strerror}", UNWRITABLE)


def _reading(path: Path, base: sqlite3.Connection) -> Finding:
    """Its structure, as much of it as can be read in time. Raises sqlite3.Error."""
    tables = {name for (name,) in base.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
    if not tables:
        return ok(NAME, f"{path} is empty: the first run makes its tables")
    if not {"experiments", "runs", "alembic_version"} <= tables:
        fix = "name another file: MLflow would make its tables in this one"
        return problem(NAME, f"{path}: is no MLflow store: its {len(tables)} tables are others", fix)
    deadline = time.monotonic() + SECONDS_TO_READ
    base.set_progress_handler(lambda: time.monotonic() > deadline, 10_000)
    try:
        (verdict,) = base.execute("PRAGMA quick_check(1)").fetchone()
    except sqlite3.OperationalError as error:
        if "interrupted" not in str(error):
            raise
        verdict = "ok"
    base.set_progress_handler(None, 0)
    if verdict != "ok":
        return problem(NAME, f"{path}: damaged: {verdict.splitlines()[-1]}", CORRUPT)
    return ok(NAME, f"{path}: {path.stat().st_size / 2**20:,.1f} MiB, undamaged")


def _writing(path: Path, base: sqlite3.Connection) -> Finding:
    """A table that is taken back before it is committed: it needs all that writing needs. Raises sqlite3.Error."""
    base.execute("BEGIN IMMEDIATE")
    try:
        base.execute("CREATE TABLE steadytrain_doctor (id)")
    finally:
        if base.in_transaction:  # SQLite ends one that cannot be written
            base.execute("ROLLBACK")
    return ok(WRITING, "takes new entries (tried with one that was taken back)")


def _complaint(path: Path, error: sqlite3.OperationalError) -> Finding:
    text = str(error)
    if "locked" in text:
        fix = "what else has it open? `fuser FILE`; many runs at once want a server: `mlflow server`"
        return warning(WRITING, f"{path}: locked by another process for {SECONDS_TO_LOCK:.0f} s", fix)
    if "unable to open" in text and not os.access(path, os.R_OK):
        return problem(NAME, f"{path}: cannot be read", UNWRITABLE)
    if path.is_dir():
        return problem(NAME, f"{path}: is a folder", "name a file: sqlite:///FOLDER/mlflow.db")
    return problem(WRITING, f"{path}: {text}", UNWRITABLE)
