"""Which nodes are unfit, and that each is named whatever it lacks."""

import json
from pathlib import Path

import pytest

from configs.errors import ConfigError, LaunchError
from configs.load import load
from configs.schema import Config
from configs.sites import Preflight
from launcher.jobs.attempt import PREFLIGHT, RankJournal, read_ranks
from launcher.jobs.place import Place
from launcher.jobs.preflight import check_nodes
from launcher.jobs.rendezvous import meet
from tests.distributed import spawn
from tests.training.test_run import TINY


def place(rank: int, world_size: int) -> Place:
    return Place(rank, rank, world_size, f"n{rank}", ("127.0.0.1",), "7", 0)


def unfit(folder: Path) -> list[str]:
    return json.loads((folder / PREFLIGHT).read_text())["unfit"]


def check(config: Config, folder: Path) -> None:
    """One of two ranks, the first of which runs a command that does not end."""
    import torch.distributed as dist

    rank = dist.get_rank()
    dist.destroy_process_group()  # joined anew, as in a job, with the preflight's own patience
    store = meet(folder, place(rank, 2))
    with pytest.raises(LaunchError, match="unfit nodes: n0"):
        check_nodes(Preflight(command="sleep 60", timeout_s=1), config, place(rank, 2), folder)
    assert unfit(folder) == ["n0"], "it is written before any rank leaves"
    del store


def test_a_command_that_hangs_on_one_node_is_named_by_the_others_that_wait_for_it(tmp_path: Path) -> None:
    spawn(2, check, load(TINY, [f"run.dir={tmp_path}"]), tmp_path)


@pytest.mark.parametrize(("device", "count", "rank"), [("cuda", 0, 0), ("cuda", 7, 7), ("auto", 7, 7)])
def test_a_node_that_lacks_a_gpu_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, device: str, count: int, rank: int
) -> None:
    monkeypatch.setattr("torch.cuda.device_count", lambda: count)
    config = load(TINY, [f"run.dir={tmp_path}", f"training.device={device}"])
    with pytest.raises(LaunchError, match=f"^node n{rank}: process {rank} of this node sees {count} GPUs: unfit$"):
        check_nodes(Preflight(), config, place(rank, 8), tmp_path)
    assert unfit(tmp_path) == [f"n{rank}"]


@pytest.mark.parametrize(
    ("error", "how"), [(LaunchError("do not reach each other"), "failed"), (ConfigError("a = 1: no"), "refused")]
)
def test_ranks_that_do_not_find_each_other_are_no_mistake_of_the_users(
    tmp_path: Path, error: Exception, how: str
) -> None:
    RankJournal(tmp_path, place(0, 1)).failed(error, 0)
    assert [record.how for record in read_ranks(tmp_path)] == [how]
