"""Run a function on several real gloo ranks and get every rank's result, or the first traceback with its rank."""

import io
import multiprocessing
import os
import tempfile
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

PRELOADED = ["tests.preload"]


class RankFailed(AssertionError):
    """A rank raised, died or hung; the message has its rank and traceback."""


def spawn(world_size: int, function: Callable[..., Any], *args: Any, timeout: float = 300.0) -> list[Any]:
    """`function(*args)` on `world_size` gloo ranks; results by rank. No process outlives the call.

    Ranks are forked from a server that has the heavy packages imported, so a call costs a fraction of a second.
    `function` and `args` must be picklable; `torch.distributed` is initialised when `function` starts.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    with tempfile.TemporaryDirectory() as folder:
        pipes = [context.Pipe(duplex=False) for _ in range(world_size)]
        ranks = [
            context.Process(target=_rank, args=(rank, world_size, folder, writer, function, args), daemon=True)
            for rank, (_, writer) in enumerate(pipes)
        ]
        try:
            for process in ranks:
                process.start()
            for _, writer in pipes:
                writer.close()
            return _collect([reader for reader, _ in pipes], timeout)
        finally:
            for process in ranks:
                process.kill()
                process.join()


def _collect(readers: list[Connection], timeout: float) -> list[Any]:
    import torch

    results: dict[int, Any] = {}
    while len(results) < len(readers):
        waiting = [reader for rank, reader in enumerate(readers) if rank not in results]
        ready = wait(waiting, timeout)
        if not ready:
            silent = [rank for rank in range(len(readers)) if rank not in results]
            raise RankFailed(f"ranks {silent} gave no result within {timeout:.0f} s")
        for reader in ready:
            rank = readers.index(reader)  # type: ignore[arg-type]
            try:
                message = reader.recv_bytes()  # type: ignore[union-attr]
            except EOFError:
                raise RankFailed(f"rank {rank} died without a word") from None
            ok, value = torch.load(io.BytesIO(message), weights_only=False)
            if not ok:
                raise RankFailed(f"rank {rank}:\n{value}")
            results[rank] = value
    return [results[rank] for rank in range(len(readers))]


def _rank(
    rank: int, world_size: int, folder: str, writer: Connection, function: Callable[..., Any], args: tuple[Any, ...]
) -> None:
    os.environ |= {"OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo", "LOCAL_RANK": str(rank)}
    import torch
    import torch.distributed as dist

    torch.set_num_threads(1)
    store = dist.FileStore(str(Path(folder) / "store"), world_size)
    try:
        dist.init_process_group("gloo", store=store, rank=rank, world_size=world_size)
        answer = (True, function(*args))
    except BaseException:  # noqa: BLE001 (the boundary of the process: the caller gets the traceback)
        answer = (False, traceback.format_exc())
    buffer = io.BytesIO()
    torch.save(answer, buffer)
    writer.send_bytes(buffer.getvalue())
    writer.close()
    # Gloo aborts in the teardown of some ranks while others still talk; the result is out, leave without it.
    os._exit(0)
