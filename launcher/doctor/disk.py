"""The runs folder's file system: can it be written, how much room, how fast, do locks hold, does its clock agree?"""

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from launcher.doctor.finding import Asked, Finding, ok, problem, warning

MIB = 2**20
WRITTEN = 64 * MIB
LITTLE, NONE = 10 * 2**30, 2**29
SLOW = 50e6
"""Bytes per second below which saves are felt: a checkpoint of 1 GB takes 20 s."""
SKEW, GREAT_SKEW = 2.0, 30.0
"""Seconds. The preflight of a job refuses the greater by default."""
TRY_LOCK = (
    "import sys\nfrom filelock import FileLock, Timeout\n"
    "try: FileLock(sys.argv[1]).acquire(timeout=0)\nexcept Timeout: sys.exit(7)\n"
)
HELD = 7


def check(asked: Asked) -> Iterator[Finding]:
    """All of it in one temporary folder, which is removed."""
    runs = Path(asked.runs).absolute()
    folder = runs
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    if not folder.is_dir():
        yield problem("runs folder", f"{folder}: is no folder", "choose another: --runs DIR here, run.dir=DIR for runs")
        return
    try:
        with tempfile.TemporaryDirectory(prefix=".doctor-", dir=folder) as scratch:
            yield ok("runs folder", f"{runs}{'' if runs.is_dir() else ' (not there yet)'}: can be written")
            free = os.statvfs(scratch)
            available = free.f_frsize * free.f_bavail
            yield free_space(available)
            if available > 2 * WRITTEN:
                yield speed(_write(Path(scratch)))
            yield _locking(Path(scratch))
            yield clock(_skew(Path(scratch)))
    except OSError as error:
        fix = "choose another: --runs DIR here, run.dir=DIR for runs; or look at its owner, mode and quota"
        yield problem("runs folder", f"{folder}: cannot be written: {error.strerror}", fix)


def free_space(free: int) -> Finding:
    """Bytes that this user may still write."""
    found = f"{free / 2**30:,.1f} GiB free"
    fix = "remove old runs or checkpoints (checkpoint.keep), or choose another run.dir"
    if free < NONE:
        return problem("disk space", found, fix)
    return warning("disk space", found, fix) if free < LITTLE else ok("disk space", found)


def speed(seconds: float) -> Finding:
    """Of writing 64 MiB to the disk itself."""
    rate = WRITTEN / seconds
    found = f"{WRITTEN // MIB} MiB written and synced in {seconds:.2f} s ({rate / 1e6:,.0f} MB/s)"
    if rate < SLOW:
        return warning("disk speed", found, f"a checkpoint takes {1e9 / rate:.0f} s per GB: choose a faster run.dir")
    return ok("disk speed", found)


def clock(skew: float) -> Finding:
    """Seconds that the file system is ahead of this machine."""
    found = f"the file system is {skew:+.1f} s from this machine"
    fix = "set this machine's or the file server's clock: `timedatectl`, chrony"
    if abs(skew) > GREAT_SKEW:
        return problem("clock", found, fix)
    return warning("clock", found, fix) if abs(skew) > SKEW else ok("clock", found)


def _write(folder: Path) -> float:
    """Seconds for 64 MiB of noise, with fsync."""
    block = os.urandom(MIB)
    started = time.perf_counter()
    with (folder / "speed").open("wb") as file:
        for _ in range(WRITTEN // MIB):
            file.write(block)
        file.flush()
        os.fsync(file.fileno())
    seconds = time.perf_counter() - started
    (folder / "speed").unlink()
    return seconds


def _locking(folder: Path) -> Finding:
    """Whether another process is kept out by the lock that guards a run."""
    from filelock import FileLock

    path = folder / "lock"
    try:
        with FileLock(path, timeout=0):
            other = subprocess.run([sys.executable, "-c", TRY_LOCK, str(path)], capture_output=True, check=False)
    except OSError as error:
        return _no_locks(f"refused: {error.strerror}")
    if other.returncode == HELD:
        return ok("file locks", "hold between processes")
    return _no_locks("two processes hold the same lock")


def _no_locks(found: str) -> Finding:
    fix = "mount it with locks (NFS: version 4, or no `nolock`/`local_lock`), or choose another run.dir"
    return problem("file locks", f"{found}: two runs could write the same folder", fix)


def _skew(folder: Path) -> float:
    path = folder / "clock"
    before = time.time()
    path.write_bytes(b"x")
    after = time.time()
    return path.stat().st_mtime - (before + after) / 2
