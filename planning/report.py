"""A plan as people read it, and as programs do."""

from collections.abc import Iterator, Mapping
from typing import Any

from configs.schema import Config
from planning.communication import Axis, Machine
from planning.dry_run import DryRun
from planning.layouts import GIB, Plan, Search, reasons
from planning.memory import Memory

REASONS = 12
"""Lines about what does not fit."""


def describe(config: Config) -> str:
    """A layout in one line."""
    parallel, training = config.parallel, config.training
    pipeline = f", {parallel.schedule}" + (f" x {parallel.chunks} chunks" if parallel.chunks > 1 else "")
    return (
        f"tp {parallel.tp}{' + sequence' if parallel.sequence_parallel else ''}, dp {parallel.dp}, pp {parallel.pp}"
        f"{pipeline if parallel.pp > 1 else ''}, micro-batch {training.micro_batch_size}, "
        f"recompute {training.recompute}, ZeRO-{parallel.zero_stage}"
    )


def configured(plan: Plan, machine: Machine, tokens: float) -> Iterator[str]:
    """The configuration's own layout: memory by part, communication by axis, time."""
    yield f"Configured: {describe(plan.config)}"
    fits = plan.worst.peak <= machine.usable
    yield (
        f"  memory: {_gib(plan.worst.peak)} of {_gib(machine.usable)} GiB usable ({machine.device.memory_gib:g} less "
        f"{machine.headroom:.0%}): {'fits' if fits else 'DOES NOT FIT'}"
    )
    yield f"  {'GiB':<26}{'first stage':>12}{'last stage':>12}"
    for name, first in parts(plan.first).items():
        yield f"  {name:<26}{_gib(first):>12}{_gib(parts(plan.last)[name]):>12}"
    speed = plan.speed
    yield f"  step {speed.step:.3g} s: compute {speed.compute:.3g}, of which tensor-parallel communication " + (
        f"{speed.tensor.seconds:.3g}; bubble {speed.bubble:.1%}; gradients and parameters over dp "
        f"{speed.data.seconds:.3g}; optimizer and sigmaReparam {speed.boundary:.3g}"
    )
    for name, axis in axes(plan).items():
        yield f"  {name:<9} {axis.sent / 1e9:>10,.1f} GB per rank and step, {axis.seconds:.3g} s over the {axis.where}"
    yield f"  {_rate(plan)}; {_length(plan, tokens)}"


def table(search: Search, machine: Machine, top: int) -> Iterator[str]:
    """The fastest layouts, and why others are not among them."""
    count = len(search.plans)
    yield f"{count:,} of {count + len(search.too_large):,} layouts fit; the fastest:"
    yield f"  {'GiB':>5} {'bubble':>6} {'tok/s/GPU':>9} {'MFU':>6}  layout"
    for plan in search.plans[:top]:
        yield (
            f"  {plan.worst.peak / GIB:>5.1f} {plan.speed.bubble:>6.1%} {plan.speed.tokens_per_s_per_device:>9,.0f} "
            f"{plan.speed.mfu:>6.1%}  {describe(plan.config)}"
        )
    lines = reasons(search.too_large, search.plans, machine)
    if lines:
        yield "Too large, whatever else is chosen:"
        yield from (f"  {line}" for line in lines[:REASONS])
    if len(lines) > REASONS:
        yield f"  and {len(lines) - REASONS} more"
    if search.refused:
        rules = ", ".join(f"{key} ({number:,})" for key, number in sorted(search.refused.items()))
        yield f"Refused by rules of the configuration: {rules}"


def parts(memory: Memory) -> dict[str, float]:
    """Bytes by name, as they are shown."""
    return {
        "weights (fp32)": memory.weights,
        "optimizer states": memory.moments,
        "W_hat, u, v, tables": memory.effective,
        "gradients (fp32)": memory.gradients,
        "activations in flight": memory.in_flight,
        "  logits, loss of one": memory.logits,
        "receive buffers": memory.received,
        "measured steps": memory.monitor,
        **({"weights kept by SAM": memory.kept} if memory.kept else {}),
        **{f"peak: {name}": size for name, size in memory.phases.items()},
    }


def axes(plan: Plan) -> dict[str, Axis]:
    """Communication by name."""
    return {"tensor": plan.speed.tensor, "data": plan.speed.data, "pipeline": plan.speed.pipeline}


def record(plan: Plan, tokens: float) -> dict[str, Any]:
    """A layout for programs."""
    parallel, training, speed = plan.config.parallel, plan.config.training, plan.speed
    return {
        "layout": {
            **parallel.model_dump(mode="json"),
            "micro_batch_size": training.micro_batch_size,
            "recompute": training.recompute,
        },
        "memory_bytes": {"first": parts(plan.first), "last": parts(plan.last), "peak": plan.worst.peak},
        "communication": {name: vars(axis) for name, axis in axes(plan).items()},
        "step_seconds": speed.step,
        "compute_seconds": speed.compute,
        "boundary_seconds": speed.boundary,
        "bubble": speed.bubble,
        "tokens_per_s": speed.tokens_per_s,
        "tokens_per_s_per_device": speed.tokens_per_s_per_device,
        "mfu": speed.mfu,
        "hours": tokens / speed.tokens_per_s / 3600,
        "device_hours": tokens / speed.tokens_per_s / 3600 * speed.ranks,
    }


def dry_run_lines(run: DryRun) -> Iterator[str]:
    """What one rank is."""
    yield f"rank {run.rank} of {run.world_size:,}: tp {run.tp_rank}, dp {run.dp_rank}, pp {run.pp_rank}"
    for name, ranks in {"tensor": run.tensor_ranks, "data": run.data_ranks, "pipeline": run.pipeline_ranks}.items():
        yield f"  {name}-parallel with {_few(ranks)}"
    yield f"  stages {_few(run.stages)}; layers {_few(run.layers)}; {run.parameters:,} parameters"
    yield f"  parameters and buffers {run.held_bytes / GIB:.2f} GiB, as planned"
    yield f"  schedule: {len(run.actions):,} actions, {run.messages:,} messages sent: {_few(run.actions)}"
    yield "  checked: groups, shards, shapes between stages, every send has its receive, no deadlock, memory"


def _few(items: Any) -> str:
    shown = [str(item) for item in items]
    return " ".join(shown if len(shown) <= 12 else [*shown[:8], "...", *shown[-3:]])


def _gib(size: float) -> str:
    return f"{size / GIB:,.2f}"


def _rate(plan: Plan) -> str:
    speed = plan.speed
    return f"{speed.tokens_per_s:,.0f} tokens/s, {speed.tokens_per_s_per_device:,.0f} per GPU, MFU {speed.mfu:.1%}"


def _length(plan: Plan, tokens: float) -> str:
    hours = tokens / plan.speed.tokens_per_s / 3600
    time = f"{hours:,.1f} hours" if hours < 48 else f"{hours / 24:,.1f} days"
    return f"{tokens:.3g} tokens: {time}, {hours * plan.speed.ranks:,.0f} GPU hours"


def as_json(own: Plan | None, search: Search | None, machine: Machine, tokens: float, top: int) -> Mapping[str, Any]:
    """All of it for programs."""
    found: dict[str, Any] = {"configured": None if own is None else record(own, tokens)}
    if search is not None:
        found["layouts"] = [record(plan, tokens) for plan in search.plans[:top]]
        found["too_large"] = reasons(search.too_large, search.plans, machine)
        found["refused"] = search.refused
    return found
