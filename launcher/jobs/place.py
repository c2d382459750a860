"""Which process of which job this is, as submitit's environment says."""

import os
import socket
from dataclasses import dataclass

RESTART = "STEADYTRAIN_RESTART"
"""How often a job without Slurm was started before."""


@dataclass(frozen=True)
class Place:
    """One process of one attempt of a job. `job_id` is `123` or, in an array, `123_4`."""

    rank: int
    local_rank: int
    world_size: int
    node: str
    nodes: tuple[str, ...]
    job_id: str
    restart: int
    """How often Slurm has started this job before."""

    @property
    def attempt(self) -> str:
        """Name of the attempt, the same in all its processes and never used again."""
        return f"{self.job_id}.{self.restart}"

    @classmethod
    def here(cls) -> "Place":
        """Ask submitit. Raises RuntimeError outside one of its jobs."""
        from submitit import JobEnvironment

        environment = JobEnvironment()
        return cls(
            rank=environment.global_rank,
            local_rank=environment.local_rank,
            world_size=environment.num_tasks,
            node=os.environ.get("SLURMD_NODENAME") or socket.gethostname(),
            nodes=("127.0.0.1",) if environment.name() == "local" else tuple(environment.hostnames),
            job_id=environment.job_id,
            restart=restart_count(),
        )


def restart_count() -> int:
    """How often this job was started before; Slurm leaves the variable out the first time."""
    return int(os.environ.get(RESTART) or os.environ.get("SLURM_RESTART_COUNT") or 0)
