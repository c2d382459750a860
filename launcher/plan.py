"""`steadytrain plan`: what a job will need, and a dry run of one of its ranks."""

import json
import resource
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from configs.errors import ConfigError, DataError
from configs.files import read
from configs.load import Loaded, load_with_origins
from configs.schema import Config
from monitoring.devices import DEVICES

if TYPE_CHECKING:
    from planning.communication import Machine

NO_DATA = "data.sources=[{path: unknown}]"


def load(path: Path, overrides: Sequence[str], vocab_size: int | None) -> tuple[Loaded, int]:
    """The configuration and its vocabulary; with --vocab-size it may name data that are elsewhere, or none.

    Raises ConfigError, also where the vocabulary cannot be known.
    """
    named = "sources" in (read(path).values.get("data") or {}) or any(
        override.startswith("data.sources") for override in overrides
    )
    if not named and vocab_size is None:
        raise ConfigError(f"{path}: data.sources: not set; give --vocab-size to plan without data")
    loaded = load_with_origins(path, overrides if named else [*overrides, NO_DATA])
    return loaded, vocab_size or _vocab_size(loaded.config)


def _vocab_size(config: Config) -> int:
    from data.manifest import read_manifest

    try:
        return read_manifest(config.data.sources[0].path).tokenizer.vocab_size
    except DataError as error:
        raise ConfigError(f"command line: --vocab-size: must be set where the data are not: {error}") from None


def machine(device: str, nodes: int, gpus_per_node: int, efficiency: float | None, compiled: bool) -> "Machine":
    """Raises ConfigError for a device that is not in the table."""
    from planning.communication import Machine

    if device not in DEVICES:
        raise ConfigError(f"command line: --device = {device}: must be one of {', '.join(DEVICES)}")
    given = Machine(DEVICES[device], nodes, gpus_per_node, fused=Machine.FUSED if compiled else 1.0)
    return given if efficiency is None else given.with_efficiency(efficiency)


def plan(loaded: Loaded, vocab_size: int, where: "Machine", *, top: int, tokens: float | None, as_json: bool) -> str:
    """The configured layout, the best ones, and why others do not fit. Raises ConfigError: it cannot be laid out."""
    from planning import report
    from planning.fake import fake_ranks
    from planning.layouts import Planner

    config = loaded.resolve(where.ranks)
    training = config.training
    tokens = tokens or training.steps * training.global_batch_size * training.sequence_length
    with fake_ranks(max(where.gpus_per_node, config.parallel.tp)):
        planner = Planner(config, vocab_size, where)
        own = planner.plan(config)
        search = planner.search() if top else None
    if as_json:
        return json.dumps(report.as_json(own, search, where, tokens, top), indent=2)
    lines = [_headline(where), *report.configured(own, where, tokens)]
    return "\n".join(lines + (list(report.table(search, where, top)) if search else []))


def _headline(where: "Machine") -> str:
    return (
        f"{where.ranks:,} x {where.device.name} ({where.nodes:,} x {where.gpus_per_node}); assumed: "
        f"{where.efficiency:.0%} of peak in matrix products, {where.attention_efficiency:.0%} in attention, "
        f"{where.memory_efficiency:.0%} of memory bandwidth, {where.link_efficiency:.0%} of links"
    )


def dry_run(loaded: Loaded, vocab_size: int, world_size: int, rank: str, *, as_json: bool) -> str:
    """Build and check one rank. Raises ConfigError: no such rank."""
    from planning.dry_run import dry_run as build
    from planning.report import dry_run_lines

    config = loaded.resolve(world_size)
    started = time.perf_counter()
    run = build(config, vocab_size, _rank(rank, world_size))
    if as_json:
        return json.dumps(asdict(run), indent=2)
    return "\n".join([*dry_run_lines(run), *_cost(started)])


def _cost(started: float) -> Iterator[str]:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    yield f"  this took {time.perf_counter() - started:.1f} s and {peak / 2**30:.2f} GiB here"


def _rank(text: str, world_size: int) -> int:
    named = {"first": 0, "middle": world_size // 2, "last": world_size - 1}
    if text not in named and not (text.isdecimal() and int(text) < world_size):
        raise ConfigError(
            f"command line: --dry-run-rank = {text}: must be a rank from 0 to {world_size - 1}, first, middle or last"
        )
    return named[text] if text in named else int(text)
