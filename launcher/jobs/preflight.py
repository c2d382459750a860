"""Before training: has each node what it needs, and do all ranks reach each other? One line per node.

    node 127.0.1.1: 2 ranks, 0 GPUs, 21.4 GB memory free, 80 GB disk free, clock +0.00 s: good
    all-reduce over 4 ranks: 0.4 ms for 4 B, 0.9 GB/s for 16 MB

A node that fails is named in the attempt's `preflight.json`; the next attempt is kept off it.
"""

import json
import shutil
import subprocess
import time
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

from configs.atomic import write_atomically
from configs.errors import LaunchError
from configs.schema import Config
from configs.sites import Preflight
from launcher.jobs.attempt import PREFLIGHT
from launcher.jobs.place import Place

SMALL, LARGE = 1, 4 * 2**20
"""fp32 numbers of the two all-reduces: one for the time of a message, one for bandwidth."""
REPEATS = 5
SECONDS_TO_JOIN = 300.0
"""Between the first rank and the last: nodes import packages from a shared disk at different speeds."""


@dataclass(frozen=True)
class NodeReport:
    """What one rank found on its node. Sizes in bytes, the clock in seconds ahead of rank 0's."""

    node: str
    gpus: int
    free_memory: int
    free_disk: int
    clock_skew: float
    problem: str | None


def check_nodes(limits: Preflight, config: Config, place: Place, folder: Path) -> None:
    """Collective. Prints the verdicts on rank 0.

    Raises LaunchError on every rank if a node is unfit or the ranks do not reach each other.
    """
    from parallel import topology

    _require_device(config, place, folder)
    longest = timedelta(seconds=SECONDS_TO_JOIN + limits.timeout_s)  # the others wait while one runs the command
    try:
        device = topology.join(config.training.device, timeout=longest)
    except RuntimeError as error:
        raise LaunchError(f"the ranks of this job do not reach each other: {str(error).splitlines()[0]}") from None
    reports = _gather(_look(limits, config, place, _skew(place)), place)
    lines = [_line(node, ranks, limits) for node, ranks in sorted(_by_node(reports).items())]
    unfit = sorted({report.node for report in reports if _complaint(report, limits)})
    topology.be_patient(timedelta(seconds=limits.timeout_s))
    seconds, bandwidth = _all_reduce(place, device)
    if place.world_size > 1:
        lines.append(
            f"all-reduce over {place.world_size} ranks: {1e3 * seconds:.2f} ms for 4 B, "
            f"{bandwidth / 1e9:.2f} GB/s for {4 * LARGE // 2**20} MiB"
        )
    topology.be_patient()
    too_slow = place.world_size > 1 and bandwidth < limits.min_bandwidth_gb_s * 1e9
    if place.rank == 0:
        found = {"unfit": unfit, "reason": "", "lines": lines, "nodes": [asdict(report) for report in reports]}
        if unfit:
            found["reason"] = "; ".join(line for line in lines if line.endswith(": unfit"))
        write_atomically(folder / PREFLIGHT, json.dumps(found, indent=2))
        print("\n".join(lines), flush=True)  # noqa: T201
    if unfit:
        _barrier(place)  # the first rank to leave takes the others along: not before it is written
        raise LaunchError(f"unfit nodes: {', '.join(unfit)}")
    if too_slow:
        raise LaunchError(f"{lines[-1]}: the site asks for {limits.min_bandwidth_gb_s:g} GB/s")


def _require_device(config: Config, place: Place, folder: Path) -> None:
    """Before the ranks join, which takes devices: one that lacks its own names its node and leaves."""
    import torch

    problem = _device_problem(config, place, torch.cuda.device_count())
    if problem is None:
        return
    line = f"node {place.node}: {problem}: unfit"
    found = {"unfit": [place.node], "reason": line, "lines": [line], "nodes": []}
    write_atomically(folder / PREFLIGHT, json.dumps(found, indent=2))
    raise LaunchError(line)


def _look(limits: Preflight, config: Config, place: Place, skew: float) -> NodeReport:
    import psutil
    import torch

    runs = config.run.dir
    while not runs.exists():
        runs = runs.parent
    return NodeReport(
        node=place.node,
        gpus=torch.cuda.device_count(),
        free_memory=psutil.virtual_memory().available,
        free_disk=shutil.disk_usage(runs).free,
        clock_skew=skew,
        problem=_run_command(limits, place),
    )


def _device_problem(config: Config, place: Place, count: int) -> str | None:
    """A process that sees one GPU and is not the first is no broken node but bound to it: `topology.join` says so."""
    missing = config.training.device == "cuda" if count == 0 else config.training.device != "cpu" and count > 1
    if missing and place.local_rank >= count:
        return f"process {place.local_rank} of this node sees {count} GPUs"
    return None


def _run_command(limits: Preflight, place: Place) -> str | None:
    """The site's own check, by the first process of each node."""
    if limits.command is None or place.local_rank != 0:
        return None
    try:
        done = subprocess.run(
            limits.command,  # the site's own line
            shell=True,
            capture_output=True,
            encoding="utf-8",
            errors="replace",
            timeout=limits.timeout_s,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return f"its health check took longer than {limits.timeout_s:g} s"
    if done.returncode == 0:
        return None
    said = (done.stderr.strip() or done.stdout.strip()).splitlines()
    return f"its health check failed with exit code {done.returncode}" + (f": {said[-1]}" if said else "")


def _skew(place: Place) -> float:
    """Seconds this clock is ahead of rank 0's, to half the time of a broadcast."""
    import torch
    import torch.distributed as dist

    if place.world_size == 1:
        return 0.0
    device = _group_device()
    now = torch.zeros(1, dtype=torch.float64, device=device)
    for _ in range(2):  # the first opens connections
        dist.barrier()
        now.fill_(time.time())
        dist.broadcast(now, src=0)
    return time.time() - now.item()


def _all_reduce(place: Place, device: Any) -> tuple[float, float]:
    """(seconds of a small message, bytes per second of a large one: size / time), the slowest of all ranks."""
    import torch
    import torch.distributed as dist

    if place.world_size == 1:
        return 0.0, float("inf")
    times = []
    for length in (SMALL, LARGE):
        buffer = torch.zeros(length, device=device)
        dist.all_reduce(buffer)
        started = time.perf_counter()
        for _ in range(REPEATS):
            dist.all_reduce(buffer)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        times.append((time.perf_counter() - started) / REPEATS)
    slowest = torch.tensor(times, dtype=torch.float64, device=device)
    dist.all_reduce(slowest, op=dist.ReduceOp.MAX)
    small, large = slowest.tolist()
    return small, 4 * LARGE / large


def _gather(report: NodeReport, place: Place) -> list[NodeReport]:
    import torch.distributed as dist

    reports: list[Any] = [None] * place.world_size
    if place.world_size == 1:
        return [report]
    dist.all_gather_object(reports, report)
    return reports


def _barrier(place: Place) -> None:
    import torch.distributed as dist

    if place.world_size > 1:
        dist.barrier()


def _group_device() -> Any:
    import torch
    import torch.distributed as dist

    return torch.device("cuda", torch.cuda.current_device()) if dist.get_backend() == "nccl" else torch.device("cpu")


def _by_node(reports: Iterable[NodeReport]) -> dict[str, list[NodeReport]]:
    nodes = defaultdict(list)
    for report in reports:
        nodes[report.node].append(report)
    return dict(nodes)


def _complaint(report: NodeReport, limits: Preflight) -> str | None:
    if report.problem:
        return report.problem
    if report.free_memory < limits.min_free_memory_gb * 1e9:
        return f"less than {limits.min_free_memory_gb:g} GB of memory free"
    if report.free_disk < limits.min_free_disk_gb * 1e9:
        return f"less than {limits.min_free_disk_gb:g} GB of disk free"
    if abs(report.clock_skew) > limits.max_clock_skew_s:
        return f"its clock is more than {limits.max_clock_skew_s:g} s off"
    return None


def _line(node: str, ranks: list[NodeReport], limits: Preflight) -> str:
    first = ranks[0]
    complaint = next((text for report in ranks if (text := _complaint(report, limits))), None)
    memory = min(report.free_memory for report in ranks) / 1e9
    disk = min(report.free_disk for report in ranks) / 1e9
    verdict = "good" if complaint is None else f"{complaint}: unfit"
    return (
        f"node {node}: {len(ranks)} rank{'s' if len(ranks) > 1 else ''}, {first.gpus} GPUs, "
        f"{memory:.1f} GB memory free, {disk:.0f} GB disk free, clock {first.clock_skew:+.2f} s: {verdict}"
    )
