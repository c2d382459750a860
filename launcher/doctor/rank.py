"""One of the two processes of `processes.py`: rank 0 prints a line of JSON for each backend."""

import json
import os
import time
from datetime import timedelta

import torch
import torch.distributed as dist

TIMEOUT = timedelta(seconds=20)
LENGTH = 2**18
"""fp32 numbers of the all-reduce: 1 MiB."""


def main() -> None:
    """gloo, then NCCL if each process can have a GPU."""
    _tell("gloo", torch.device("cpu"))
    if torch.cuda.device_count() >= dist.get_world_size():
        _tell("nccl", torch.device("cuda", dist.get_rank()))
    dist.destroy_process_group()


def _tell(backend: str, device: torch.device) -> None:
    milliseconds, error = None, None
    try:
        milliseconds = 1e3 * _all_reduce(backend, device)
    except RuntimeError as raised:  # torch's, for a partner that does not answer
        error = str(raised).strip().splitlines()[0]
    if os.environ["RANK"] == "0":
        print(json.dumps({"backend": backend, "milliseconds": milliseconds, "error": error}), flush=True)  # noqa: T201
    if not dist.is_initialized():
        raise SystemExit(0)


def _all_reduce(backend: str, device: torch.device) -> float:
    """Seconds of one all-reduce after a first. Raises RuntimeError: no partner, or a wrong sum."""
    if not dist.is_initialized():
        dist.init_process_group("gloo", timeout=TIMEOUT)
    if device.type == "cuda":
        torch.cuda.set_device(device)
    group = dist.new_group(backend=backend, timeout=TIMEOUT)
    numbers = torch.full((LENGTH,), float(dist.get_rank() + 1), device=device)
    dist.all_reduce(numbers.clone(), group=group)
    _wait(device)
    started = time.perf_counter()
    dist.all_reduce(numbers, group=group)
    _wait(device)
    if not bool((numbers == 3.0).all()):
        raise RuntimeError("the sum of two processes is wrong")
    return time.perf_counter() - started


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


if __name__ == "__main__":
    main()
