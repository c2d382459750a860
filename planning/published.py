"""What a plan says of runs that others published, beside their figures: how far its assumptions carry.

    python -m planning.published

The runs are other programs' (FSDP in place of DeepSpeed's ZeRO, other kernels); a plan of one is ours with the same
model, GPUs and precision, and with its length, batch and recomputation where they are known. Sources: the tables that
torchtitan, llm-foundry, Fast-LLM, KempnerForge and Megatron-LM publish with their code.
"""

from dataclasses import dataclass, replace
from typing import Any

from rich.console import Console
from rich.table import Table

from configs.checks import resolve
from configs.schema import Config
from monitoring.devices import DEVICES
from planning.communication import Machine
from planning.fake import fake_ranks
from planning.layouts import GIB, Plan, Planner

LLAMA_8B: dict[str, Any] = {
    "layers": 32, "hidden_size": 4096, "heads": 32, "kv_heads": 8, "ffn_size": 14336, "norm": "rmsnorm",
    "activation": "swiglu",
}  # fmt: skip
MPT_7B: dict[str, Any] = {"layers": 32, "hidden_size": 4096, "heads": 32}
GPT_175B: dict[str, Any] = {"layers": 96, "hidden_size": 12288, "heads": 96}


@dataclass(frozen=True)
class Published:
    """A run of others; `mfu` and `tokens_per_s` (per GPU) as they gave them, "-" and None where they did not."""

    source: str
    model: dict[str, Any]
    vocab_size: int
    device: str
    nodes: int
    gpus_per_node: int
    length: int
    batch: int
    """Sequences per step, and in a micro-batch."""
    micro_batch: int
    recompute: str
    compiled: bool
    mfu: str
    tokens_per_s: float | None
    parallel: dict[str, Any]
    differs: str
    """What theirs has and the plan's has not."""


RUNS = (
    Published(
        "torchtitan, Llama 3.1 8B", LLAMA_8B, 128256, "h100", 1, 8, 8192, 16, 2, "selective", True, "-", 6667, {},
        "FSDP2 shards the weights; their recomputation is finer",
    ),
    Published(
        "llm-foundry, MPT-7B", MPT_7B, 50368, "h100", 1, 8, 2048, 512, 8, "none", False, "46.4%", 10643, {},
        "FSDP; fused kernels of their own",
    ),
    Published(
        "Fast-LLM, Mistral 7B", LLAMA_8B, 32000, "h100", 4, 8, 8192, 128, 1, "none", True, "49.2%", 10000, {},
        "ZeRO of its own, overlapped; length, nodes and batch assumed here",
    ),
    Published(
        "KempnerForge, 8B, one H200", LLAMA_8B, 128256, "h200", 1, 1, 4096, 8, 4, "full", True, "57.8%", 10471, {},
        "full recomputation; length and batch assumed here",
    ),
    Published(
        "KempnerForge, 8B, TP 4", LLAMA_8B, 128256, "h200", 1, 4, 4096, 8, 2, "full", True, "34.7%", None,
        {"tp": 4, "sequence_parallel": True}, "length and batch assumed here",
    ),
    Published(
        "Megatron-LM, 175B, 1,024 H100s", GPT_175B, 51200, "h100", 128, 8, 4096, 1536, 1, "selective", False,
        "41-48%", None,
        {"tp": 8, "pp": 8, "schedule": "interleaved_1f1b", "stages_per_rank": 6, "sequence_parallel": True},
        "theirs: the range over 2B to 462B; layout, length, batch assumed here",
    ),
)  # fmt: skip


def planned(run: Published) -> Plan:
    """Our plan of such a run."""
    config = Config.model_validate(
        {
            "data": {"sources": [{"path": "none"}]},
            "model": run.model,
            "parallel": run.parallel,
            "training": {
                "global_batch_size": run.batch,
                "micro_batch_size": run.micro_batch,
                "sequence_length": run.length,
                "precision": "bf16",
                "recompute": run.recompute,
            },
            "monitoring": {"interval": 0},
        }
    )
    machine = Machine(DEVICES[run.device], run.nodes, run.gpus_per_node)
    machine = replace(machine, fused=Machine.FUSED) if run.compiled else machine
    config = resolve(config, machine.ranks)
    with fake_ranks(max(run.gpus_per_node, config.parallel.tp)):
        return Planner(config, run.vocab_size, machine).plan(config)


def main() -> None:
    """Print the table."""
    table = Table(title="Plans of published runs")
    for name in ("run", "theirs: MFU", "tok/s/GPU", "planned: MFU", "tok/s/GPU", "planned GiB", "what differs"):
        table.add_column(name)
    for run in RUNS:
        plan = planned(run)
        table.add_row(
            run.source,
            run.mfu,
            "-" if run.tokens_per_s is None else f"{run.tokens_per_s:,.0f}",
            f"{plan.speed.mfu:.1%}",
            f"{plan.speed.tokens_per_s_per_device:,.0f}",
            f"{plan.worst.peak / GIB:.0f}",
            run.differs,
        )
    Console(width=160).print(table)


if __name__ == "__main__":
    main()
