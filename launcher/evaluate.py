"""`steadytrain evaluate`: the loss of a run's checkpoints on prepared data."""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import typer
from rich import box
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from configs.errors import CheckpointError, DataError
from configs.schema import Config, DataSource
from data.manifest import SplitName
from data.samples import Samples
from exchange.origin import require_data, tokenizer_of
from exchange.plain import PlainWeights, open_run
from inference.evaluate import Evaluation, evaluate
from inference.load import load_decoder, place
from inference.tokens import TextBytes, samples_of
from launcher.passed_over import tell_passed_over
from training.checkpoint import store


@dataclass(frozen=True)
class Request:
    """What the command line asks for."""

    data: Path | None
    split: SplitName
    samples: int | None
    batch_size: int
    device: str
    dtype: str | None


@dataclass(frozen=True)
class Evaluated:
    """One checkpoint's result; `logged`: what the run itself found on the same samples, if it looked."""

    checkpoint: str
    step: int
    result: Evaluation
    logged: float | None


def evaluate_run(request: Request, run: Path, *, step: int | None, all_steps: bool) -> list[Evaluated]:
    """Newest first. Raises: CheckpointError, DataError, ConfigError."""
    return [_evaluate(request, weights) for weights in _checkpoints(run, step, all_steps=all_steps)]


def table(found: list[Evaluated]) -> Table:
    """One row per checkpoint."""
    shown = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for heading in ("step", "loss", "±", "perplexity", "bits/byte", "samples", "logged"):
        shown.add_column(heading, justify="right", no_wrap=True)
    for entry in found:
        result = entry.result
        error = "-" if result.standard_error is None else f"{result.standard_error:.4f}"
        bits = "-" if result.bits_per_byte is None else f"{result.bits_per_byte:.4f}"
        logged = "-" if entry.logged is None else f"{entry.logged:.4f}"
        shown.add_row(
            f"{entry.step:,}",
            f"{result.loss:.4f}",
            error,
            f"{result.perplexity:.4g}",
            bits,
            f"{result.samples:,}",
            logged,
        )
    return shown


def records(found: list[Evaluated]) -> list[dict[str, Any]]:
    """One for each checkpoint, for JSON."""
    return [
        {"checkpoint": entry.checkpoint, "step": entry.step, **asdict(entry.result), "logged_val_loss": entry.logged}
        for entry in found
    ]


def _checkpoints(run: Path, step: int | None, *, all_steps: bool) -> Iterator[PlainWeights]:
    folders = store.steps(run / store.FOLDER) if all_steps else []
    if not folders:
        newest = open_run(run, step)
        tell_passed_over(newest.passed_over)
        yield newest
        return
    good = 0
    for folder in folders:
        try:
            weights = open_run(folder)
        except CheckpointError as error:
            tell_passed_over([str(error)])
            continue
        good += 1
        yield weights
    if not good:
        raise CheckpointError(f"{run}: no good checkpoint is left")


def _evaluate(request: Request, weights: PlainWeights) -> Evaluated:
    config = weights.config
    where = place(config, request.device, request.dtype)
    samples = _samples(request, weights)
    default = _own_samples(config)
    count = default if request.samples is None else request.samples
    if count > sum(samples.windows):
        typer.echo(
            f"{count} samples of {sum(samples.windows)} windows: some are read more than once, "
            "and ± takes them for different ones",
            err=True,
        )
    tokenizer = tokenizer_of(weights, None)
    decoder = load_decoder(weights, tokenizer.vocab_size, where)
    with _bar(f"step {weights.manifest.step}", count) as advance:
        text_bytes, size = TextBytes.of(tokenizer), request.batch_size
        result = evaluate(decoder, samples, count, text_bytes, batch_size=size, advance=advance)
    if not math.isfinite(result.loss):
        typer.echo(
            f"{weights.folder}: the loss is not finite (NaN or infinity): the weights are damaged, or the run diverged",
            err=True,
        )
    same = request.data is None and request.split == "validation" and count == default
    return Evaluated(str(weights.folder), weights.manifest.step, result, weights.manifest.val_loss if same else None)


def _samples(request: Request, weights: PlainWeights) -> Samples:
    """Raises: DataError if `--data` were prepared with another tokenizer than the run's own."""
    own, training = samples_of(weights, request.split), weights.config.training
    require_data(weights)
    if request.data is None:
        return own
    others = Samples([DataSource(path=request.data)], request.split, training.sequence_length, training.seed)
    if others.tokenizer_hash != own.tokenizer_hash:
        raise DataError(
            f"command line: --data = {request.data}: prepared with another tokenizer than "
            f"{own.split(0).folder}, which the run was trained on: prepare it with that one"
        )
    return others


def _own_samples(config: Config) -> int:
    """How many validation samples the run itself looks at: whole global batches."""
    training = config.training
    return -(-training.eval_samples // training.global_batch_size) * training.global_batch_size


@contextmanager
def _bar(name: str, count: int) -> Iterator[Callable[[int], None]]:
    """On a terminal (standard error), samples done and the time left; nothing elsewhere."""
    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(compact=True))
    with Progress(*columns, console=console, disable=not console.is_terminal, transient=True) as bar:
        task = bar.add_task(name, total=count)
        yield lambda done: bar.update(task, completed=done)
