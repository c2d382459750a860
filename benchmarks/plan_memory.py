"""Planned memory against that of real runs: tensors alive, storage by storage, in every phase of a step.

    python -m benchmarks.plan_memory [--quick]

Runs are of CPU processes over gloo, 17 million parameters, one or two ranks. Tensors are counted as they are made and
freed (`planning.alive`); beside them stands what the process's resident memory grew by at most, which also has what an
allocator keeps, and lacks what was allocated and never touched (DeepSpeed's bucket of 191 MiB).
"""

import argparse
import multiprocessing
import os
import re
import socket
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from benchmarks.harness import save
from configs.checks import resolve
from configs.schema import Config
from parallel import topology as topologies
from parallel.gradients import sum_partial_gradients
from parallel.quiet import deepspeed
from planning.alive import AliveBytes
from planning.fake import fake_ranks
from planning.memory import rank_memory
from planning.profile import Profiler
from stability.guard import Guard
from training.build import build_trainer
from training.sam import Ascent

MIB = 2**20
VOCAB = 4096
CASES: dict[str, tuple[int, dict[str, Any]]] = {
    "1 process": (1, {}),
    "1 process, micro-batches": (1, {"training": {"micro_batch_size": 2}}),
    "full recompute": (1, {"training": {"micro_batch_size": 2, "recompute": "full"}}),
    "dp 2, ZeRO-1": (2, {}),
    "dp 2, ZeRO-2": (2, {"parallel": {"zero_stage": 2}}),
    "tp 2": (2, {"parallel": {"tp": 2}}),
    "tp 2, sequence, selective": (
        2,
        {"parallel": {"tp": 2, "sequence_parallel": True}, "training": {"recompute": "selective"}},
    ),
    "pp 2, 1f1b": (2, {"parallel": {"pp": 2}, "training": {"micro_batch_size": 1}}),
    "pp 2, gpipe": (2, {"parallel": {"pp": 2, "schedule": "gpipe"}, "training": {"micro_batch_size": 1}}),
    "pp 2, interleaved": (
        2,
        {"parallel": {"pp": 2, "schedule": "interleaved_1f1b"}, "training": {"micro_batch_size": 1}},
    ),
    "pp 2, zero-bubble": (
        2,
        {"parallel": {"pp": 2, "schedule": "interleaved_zero_bubble"}, "training": {"micro_batch_size": 1}},
    ),
    "pp 2, ZBV": (2, {"parallel": {"pp": 2, "schedule": "zbv"}, "training": {"micro_batch_size": 1}}),
    "SAM": (1, {"optimizer": {"sam_rho": 0.05}}),
    "SAM, dp 2": (2, {"optimizer": {"sam_rho": 0.05}}),
}
QUICK = ("1 process", "tp 2", "pp 2, 1f1b")


def configuration(world_size: int, hidden_size: int = 512, **sections: dict[str, Any]) -> Config:
    """A decoder with sigmaReparam, resolved; sections override fields."""
    base: dict[str, Any] = {
        "data": {"sources": [{"path": "none"}]},
        "model": {
            "layers": 4, "hidden_size": hidden_size, "heads": 8, "activation": "swiglu", "norm": "rmsnorm",
            "reparam": {"kind": "sigma", "start": "power"},
        },
        "training": {"global_batch_size": 8, "sequence_length": 256},
        "monitoring": {"interval": 0},
    }  # fmt: skip
    for name, fields in sections.items():
        base[name] = base.get(name, {}) | fields
    return resolve(Config.model_validate(base), world_size)


def measure(config: Config, vocab_size: int) -> dict[str, float]:
    """Most bytes of tensors alive in each phase of this rank's second step; `resident`: growth of the process."""
    os.environ.setdefault("LOCAL_RANK", "0")  # DeepSpeed asks for it
    topology = topologies.start(config.parallel, "cpu")
    deepspeed("cpu")  # what its import takes is the interpreter's
    resident = _resident("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # forgets the highest resident memory so far
    found: dict[str, float] = {}
    with AliveBytes() as alive:
        trainer = build_trainer(config, topology, vocab_size)
        ascent = Ascent(config.optimizer.sam_rho, trainer, topology)
        guard = Guard(config.stability.skip, config.stability.zclip, config.optimizer.clip, topology.device)
        totals_N = torch.zeros(2, dtype=torch.float64)
        shape = (config.training.global_batch_size // topology.dp_size, config.training.sequence_length)
        for _ in range(2):
            tokens_BT, targets_BT = torch.randint(vocab_size, (2, *shape))
            accumulate = trainer.engine.accumulate()
            with alive.phase() as passes:
                accumulate.__enter__()
                loss = trainer.pipeline.train(tokens_BT, targets_BT)
                sum_partial_gradients(trainer.parameters(), topology.tensor)
                trainer.spectral.pull_back()
                ascent.take_gradients(tokens_BT, targets_BT, loss)
            with alive.phase() as reduction:
                accumulate.__exit__(None, None, None)
            with alive.phase() as update:
                trainer.engine.step(1e-3, lambda norm: guard.judge(totals_N, norm))
                trainer.spectral.refresh()
        phases = {"forward and backward": passes, "reduction": reduction, "update": update}
        found = {name: phase.peak for name, phase in phases.items()} | {"held": update.after}
    return found | {"peak": max(found.values()), "resident": _resident("VmHWM") - resident}


def _resident(name: str) -> float:
    found = re.search(rf"{name}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found is not None
    return int(found[1]) * 1024


def planned(config: Config, vocab_size: int) -> list[dict[str, float]]:
    """The same of a plan, by pipeline rank."""
    parallel = config.parallel
    with fake_ranks(parallel.tp):
        profiler = Profiler(config, vocab_size)
        profile = profiler.profile(parallel.tp, parallel.sequence_parallel, config.training.recompute)
    memories = [rank_memory(config, profile, rank) for rank in range(parallel.pp)]
    return [memory.phases | {"held": memory.held, "peak": memory.peak} for memory in memories]


def _rank(rank: int, world_size: int, port: int, config: Config, results: Any) -> None:
    os.environ |= {
        "RANK": str(rank), "WORLD_SIZE": str(world_size), "LOCAL_RANK": str(rank), "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port), "GLOO_SOCKET_IFNAME": "lo",
    }  # fmt: skip
    torch.set_num_threads(1)
    results.put((rank, measure(config, VOCAB)))
    topologies.stop()


def _run(world_size: int, config: Config) -> list[dict[str, float]]:
    context = multiprocessing.get_context("spawn")
    results = context.Queue()
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    ranks = [
        context.Process(target=_rank, args=(rank, world_size, port, config, results)) for rank in range(world_size)
    ]
    for process in ranks:
        process.start()
    found = dict(results.get(timeout=300) for _ in ranks)
    for process in ranks:
        process.join()
    return [found[rank] for rank in range(world_size)]


def main() -> None:
    """Print the table, and write it as JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="three cases")
    parser.add_argument("--json", type=Path, default=Path("runs/benchmarks/plan_memory.json"))
    options = parser.parse_args()
    table = Table(title="Memory of a rank, MiB of tensors: planned / measured")
    for name in ("layout", "rank", "held", "forward and backward", "reduction", "update", "peak", "resident growth"):
        table.add_column(name)
    rows = []
    for name, (world_size, sections) in CASES.items():
        if options.quick and name not in QUICK:
            continue
        config = configuration(world_size, **sections)
        plans = planned(config, VOCAB)
        for rank, found in enumerate(_run(world_size, config)):
            plan = plans[rank if config.parallel.pp > 1 else 0]
            cells = [f"{plan[key] / MIB:.1f} / {found[key] / MIB:.1f}" for key in plan]
            order = dict(zip(plan, cells, strict=True))
            table.add_row(
                name, str(rank), order["held"], order["forward and backward"], order["reduction"], order["update"],
                f"{plan['peak'] / found['peak']:.3f}", f"{found['resident'] / MIB:.0f}",
            )  # fmt: skip
            rows.append({"layout": name, "rank": rank, "planned": plan, "measured": found})
    console = Console(width=150)
    console.print(table)
    save(options.json, "plan_memory", rows)
    console.print(f"{options.json}")


if __name__ == "__main__":
    main()
