"""Do two processes of this machine reach each other, by gloo, and by NCCL where there are two GPUs?"""

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator

from launcher.doctor.finding import Asked, Finding, ok, problem

SECONDS = 60.0
"""From their start to their end: most of it is importing torch."""
FIXES = {
    "gloo": "does this machine's name resolve to it (/etc/hosts)? Else name an interface: GLOO_SOCKET_IFNAME=lo",
    "nccl": "NCCL_DEBUG=INFO shows why; in a container, is /dev/shm large enough (--shm-size)?",
}


def check(asked: Asked) -> Iterator[Finding]:
    """An all-reduce of two real processes, per backend."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    variables = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    ranks = [
        subprocess.Popen(
            [sys.executable, "-m", "launcher.doctor.rank"],
            env=os.environ | variables | {"RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    try:
        yield from _verdicts(ranks)
    finally:
        for rank in ranks:
            rank.kill()


def _verdicts(ranks: list["subprocess.Popen[str]"]) -> Iterator[Finding]:
    deadline, said = time.monotonic() + SECONDS, []
    for number, rank in enumerate(ranks):
        try:
            stdout, stderr = rank.communicate(timeout=max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            yield problem("processes (gloo)", f"process {number} did not end within {SECONDS:.0f} s", FIXES["gloo"])
            return
        if rank.returncode:
            words = stderr.strip().splitlines() or [f"exit code {rank.returncode}"]
            yield problem("processes (gloo)", f"process {number}: {words[-1].strip()}", FIXES["gloo"])
            return
        said.append(stdout)
    for line in said[0].splitlines():
        result = json.loads(line)
        yield verdict(result["backend"], result["milliseconds"], result["error"])


def verdict(backend: str, milliseconds: float | None, error: str | None) -> Finding:
    """Of what rank 0 tells of one backend."""
    check = f"processes ({backend})"
    if error is not None or milliseconds is None:
        return problem(check, error or "no result", FIXES[backend])
    return ok(check, f"two processes sum 1 MiB in {milliseconds:.1f} ms")
