"""What of this machine breaks training late or oddly: its name, the loopback interface, shared memory, open files."""

import os
import resource
import socket
from collections.abc import Iterator
from pathlib import Path

from launcher.doctor.finding import Asked, Finding, ok, problem, warning

SHARED_MEMORY = Path("/dev/shm")
SMALL_SHARED_MEMORY = 2**29
"""NCCL and dataloaders want more than a container's default of 64 MiB."""
FEW_FILES = 1024


def check(asked: Asked) -> Iterator[Finding]:
    """Name, loopback, /dev/shm, limits."""
    yield host_name(socket.gethostname())
    yield loopback()
    if SHARED_MEMORY.is_dir():
        space = os.statvfs(SHARED_MEMORY)
        yield shared_memory(space.f_frsize * space.f_blocks, space.f_frsize * space.f_bavail)
    yield open_files(*resource.getrlimit(resource.RLIMIT_NOFILE))


def host_name(name: str) -> Finding:
    """Whether it resolves, and to an address of this machine: gloo listens on it."""
    fix = f"put `127.0.1.1 {name}` into /etc/hosts, or name an interface: GLOO_SOCKET_IFNAME=lo"
    try:
        address = socket.getaddrinfo(name, None, type=socket.SOCK_STREAM)[0]
    except (OSError, UnicodeError):
        return problem("host name", f"{name} does not resolve to an address", fix)
    where = str(address[4][0])
    try:
        with socket.socket(address[0]) as listener:
            listener.bind(address[4])
    except OSError:
        return problem("host name", f"{name} resolves to {where}, which is no address of this machine", fix)
    return ok("host name", f"{name} is {where}")


def loopback() -> Finding:
    """A connection of this machine to itself."""
    try:
        with socket.create_server(("127.0.0.1", 0)) as server:
            socket.create_connection(server.getsockname(), timeout=5).close()
    except OSError as error:
        fix = "bring the loopback interface up: `ip link set lo up`"
        return problem("loopback", f"127.0.0.1 takes no connection: {error.strerror or error}", fix)
    return ok("loopback", "127.0.0.1 takes connections")


def shared_memory(size: int, free: int) -> Finding:
    """Bytes of /dev/shm."""
    found = f"{_gib(free)} of {_gib(size)} free in {SHARED_MEMORY}"
    if free < SMALL_SHARED_MEMORY:
        fix = "in a container: --shm-size=8g or --ipc=host; else remove stale files there"
        return warning("shared memory", f"{found}: little for NCCL between GPUs", fix)
    return ok("shared memory", found)


def open_files(soft: int, hard: int) -> Finding:
    """The limits of this process, as `ulimit -n` has them."""
    shown = "unlimited" if hard == resource.RLIM_INFINITY else f"{hard:,}"
    if soft != resource.RLIM_INFINITY and soft < FEW_FILES:
        fix = f"`ulimit -n {FEW_FILES if hard < 4 * FEW_FILES else 4 * FEW_FILES}`, or limits.conf for all shells"
        return warning("open files", f"{soft:,} at most (hard limit {shown}): few for many ranks and datasets", fix)
    return ok("open files", "unlimited" if soft == resource.RLIM_INFINITY else f"{soft:,} at most (hard limit {shown})")


def _gib(count: int) -> str:
    return f"{count / 2**30:.1f} GiB"
