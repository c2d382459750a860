"""Where the ranks of an attempt meet: a store on a port that the system gave to rank 0, announced by a file.

A port computed from the job's id may be taken, and the one of an earlier attempt may still be: nothing is guessed here.
"""

import json
import os
import time
from pathlib import Path
from typing import Any

from configs.atomic import write_atomically
from configs.errors import LaunchError
from launcher.jobs.place import Place

MASTER = "master.json"
SECONDS_TO_APPEAR = 300.0
POLL_SECONDS = 0.05


def meet(folder: Path, place: Place) -> Any:
    """Open rank 0's store, or find it, and name it in the variables that torch.distributed and DeepSpeed read.

    Returns the store of rank 0, to be kept for the life of the process; None on other ranks.
    Raises LaunchError if rank 0 does not appear in the attempt's folder.
    """
    path, store = folder / MASTER, None
    if place.rank == 0:
        from torch.distributed import TCPStore

        store = TCPStore(place.nodes[0], 0, place.world_size, is_master=True, wait_for_workers=False)
        write_atomically(path, json.dumps({"address": place.nodes[0], "port": store.port}))
    master = _wait_for(path)
    os.environ.update(
        RANK=str(place.rank),
        LOCAL_RANK=str(place.local_rank),
        WORLD_SIZE=str(place.world_size),
        MASTER_ADDR=master["address"],
        MASTER_PORT=str(master["port"]),
        TORCHELASTIC_USE_AGENT_STORE="True",  # join this store; do not try to open the port again
        TORCHELASTIC_RESTART_COUNT="0",
    )
    return store


def _wait_for(path: Path) -> dict[str, Any]:
    deadline = time.monotonic() + SECONDS_TO_APPEAR
    while time.monotonic() < deadline:
        try:
            return json.loads(path.read_text("utf-8"))
        except FileNotFoundError:
            time.sleep(POLL_SECONDS)
    raise LaunchError(f"{path}: rank 0 did not write it within {SECONDS_TO_APPEAR:.0f} s; is the folder shared?")
