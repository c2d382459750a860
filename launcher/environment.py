"""Which process of the run is this? Says what torchrun or srun set in the environment."""

import os
from collections.abc import Mapping
from dataclasses import dataclass

from configs.errors import LaunchError

# What srun calls the variables that torch.distributed reads.
SLURM_NAMES = {"RANK": "SLURM_PROCID", "LOCAL_RANK": "SLURM_LOCALID", "WORLD_SIZE": "SLURM_NTASKS"}


@dataclass(frozen=True)
class Rank:
    """One process of a run that a launcher outside has started."""

    rank: int
    local_rank: int
    world_size: int
    launcher: str


def started_rank(environ: Mapping[str, str] | None = None) -> Rank | None:
    """The rank torchrun or srun made of this process; None if nobody did.

    A batch script has SLURM_PROCID too, without being a task: only srun's steps have a numeric SLURM_STEP_ID.
    Raises LaunchError for an incomplete environment.
    """
    environ = os.environ if environ is None else environ
    if "RANK" in environ and "WORLD_SIZE" in environ:
        names = {name: name for name in SLURM_NAMES}
        launcher = "torchrun"
    elif environ.get("SLURM_STEP_ID", "").isdigit() and "SLURM_PROCID" in environ:
        names, launcher = SLURM_NAMES, "srun"
    else:
        return None
    values = {}
    for ours, name in names.items():
        text = environ.get(name, "0" if ours == "LOCAL_RANK" else "")
        if not text.isdigit():
            raise LaunchError(f"environment: {name} = {text}: {launcher} sets a whole number >= 0 for each process")
        values[ours] = int(text)
    missing = [name for name in ("MASTER_ADDR", "MASTER_PORT") if not environ.get(name)]
    if missing and values["WORLD_SIZE"] > 1:
        raise LaunchError(f"environment: {' and '.join(missing)} must be set: the address of rank 0's machine, a port")
    return Rank(values["RANK"], values["LOCAL_RANK"], values["WORLD_SIZE"], launcher)
