"""Small stand-ins for `training.run.train`, called in real processes."""

import os
import shutil
import signal
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from configs.errors import DataError
from configs.schema import Config


@dataclass
class Summary:
    status: str = "finished"
    val_loss: float | None = 2.5


def rank() -> int:
    return int(os.environ["RANK"])


def leave_note(config: Config) -> None:
    """Tell the test that this rank is running, and who it is."""
    names = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "OMP_NUM_THREADS")
    wait_for(config.run_dir / "config.yaml")  # training's first collective waits for rank 0, which makes the folder
    note = config.run_dir / f"note-{rank()}"
    temporary = note.with_suffix(".part")
    temporary.write_text("\n".join([str(os.getpid()), *(f"{name}={os.environ.get(name)}" for name in names)]))
    temporary.rename(note)


def wait_for_the_end() -> None:
    """What a rank in a collective does: nothing, until it is ended."""
    while True:
        signal.pause()


def wait_for(path: Path) -> None:
    while not path.exists():
        time.sleep(0.01)


def finish(config: Config) -> Summary:
    leave_note(config)
    print(f"output of rank {rank()}")
    print(f"progress of rank {rank()}", file=sys.stderr)
    return Summary()


def diverge(config: Config) -> Summary:
    return Summary("diverged", None)


def hang(config: Config) -> Summary:
    leave_note(config)
    wait_for_the_end()
    raise AssertionError


def crash_on_rank_1(config: Config) -> Summary:
    leave_note(config)
    if rank() == 1:
        wait_for(config.run_dir / "note-0")
        raise ValueError("the tensor has the wrong shape\nand a second line")
    wait_for_the_end()
    raise AssertionError


def crash_with_a_cascade(config: Config) -> Summary:
    """Rank 1 fails first; rank 0 fails because of it, as in a collective."""
    leave_note(config)
    if rank() == 0:
        wait_for(config.run_dir / "logs" / "rank-1.failure.json")
        raise RuntimeError("connection closed by peer")
    raise ValueError("the cause")


def user_error_on_every_rank(config: Config) -> Summary:
    raise DataError("runs/data/none: no such dataset; make it with steadytrain prepare")


def exit_without_a_word(config: Config) -> Summary:
    if rank() == 1:
        os._exit(7)
    wait_for_the_end()
    raise AssertionError


def lose_the_folder(config: Config) -> Summary:
    """The run folder is deleted under a running training."""
    if rank() == 0:
        shutil.rmtree(config.run_dir)
        (config.run_dir / "metrics.jsonl").write_text("")
    wait_for_the_end()
    return Summary()
