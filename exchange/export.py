"""A run's weights as a folder that others open: a stock architecture of transformers, or plain safetensors of ours.

Written to a hidden folder beside its place and moved there when it is complete: nothing is ever half there.
"""

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

import torch
from torch import Tensor

from configs.errors import ConfigError
from configs.load import dump
from configs.schema import Config, ParallelConfig, ReparamConfig
from data.tokenizer import Tokenizer
from exchange.card import write_card
from exchange.folded import FoldedWeights, architecture_and_model
from exchange.origin import tokenizer_of, unchecked
from exchange.plain import ATTEMPTS, BESIDE, OUR_CONFIG, UNCHECKED, CheckpointGone, PlainWeights, open_run
from exchange.shards import Planned, Shards, write_shards
from formats.architectures.architecture import Architecture
from formats.architectures.ours import parameter_shapes
from formats.architectures.tensors import Entry, Shape
from formats.tokenizer import write_fast_tokenizer
from training.checkpoint import store
from training.checkpoint.manifest import FOLDER_NAME, MANIFEST, describe, write_manifest

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
NAMES = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}
"""As transformers calls them."""
CONFIG, GENERATION = "config.json", "generation_config.json"


@dataclass(frozen=True)
class Wanted:
    """What to export, and how."""

    run: Path
    out: Path
    to: Literal["hf", "plain"] = "hf"
    step: int | None = None
    dtype: str | None = None
    """fp32, bf16 or fp16; default: the run's compute precision."""
    max_shard_bytes: int = 2 * 10**9
    tokenizer: Path | None = None
    command: str = ""
    """The command line, for the model card."""


@dataclass(frozen=True)
class Exported:
    """What was written."""

    folder: Path
    checkpoint: Path
    step: int
    architecture: str | None
    """Class of transformers; None for weights under our names."""
    dtype: str
    parameters: int
    bytes: int
    vocab_size: int
    passed_over: list[str]
    """Why newer checkpoints of the run were not taken."""
    unchecked: str | None
    """Why nothing but its size tells whether the tokenizer is the model's; None if more does."""


def export(wanted: Wanted) -> Exported:
    """Write the folder; memory holds one tensor at a time.

    Begun anew, a few times, if a run's newest checkpoint is pruned meanwhile.

    Raises: ConfigError, CheckpointError, DataError: no good checkpoint, a model that no architecture computes, weights
    that are not finite, no tokenizer, or a place that cannot be written.
    """
    require_free(wanted.out)
    for _ in range(ATTEMPTS - 1):
        plain = open_run(wanted.run, wanted.step)
        try:
            return _export(wanted, plain)
        except CheckpointGone:
            if wanted.step is not None or wanted.run.resolve() == plain.folder:
                raise
    return _export(wanted, open_run(wanted.run, wanted.step))


def _export(wanted: Wanted, plain: PlainWeights) -> Exported:
    tokenizer = tokenizer_of(plain, wanted.tokenizer)
    doubt = unchecked(plain, wanted.tokenizer)
    dtype = wanted.dtype or plain.config.training.precision
    content = _content_for(wanted.to, plain, tokenizer, NAMES[dtype])
    with _written_whole(wanted.out) as folder:
        shards = write_shards(folder, content.tensors, DTYPES[dtype], wanted.max_shard_bytes)
        for file, text in content.texts.items():
            (folder / file).write_text(text, encoding="utf-8")
        write_fast_tokenizer(tokenizer, folder, plain.config.training.sequence_length)
        if content.architecture is None:
            _write_manifest(folder, plain, shards, doubt)
        write_card(folder, plain, wanted.out.name, content.architecture, NAMES[dtype], wanted.command, doubt)
    return Exported(
        wanted.out,
        plain.folder,
        plain.manifest.step,
        content.architecture,
        dtype,
        parameters=shards.bytes // DTYPES[dtype].itemsize,
        bytes=shards.bytes,
        vocab_size=tokenizer.vocab_size,
        passed_over=plain.passed_over,
        unchecked=doubt,
    )


def require_free(out: Path) -> None:
    """Raises: ConfigError if something is there already, or the place belongs to checkpoints, or cannot be read."""
    with _reported(out):
        why = _why_taken(out)
    if why is not None:
        raise ConfigError(f"command line: --out = {out}: {why}")


def _why_taken(out: Path) -> str | None:
    if out.name in ("", ".."):
        return "name a new folder"
    if out.is_symlink():
        return "is a symbolic link; name a new folder, or an empty one"
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        return f"{'is not empty' if out.is_dir() else 'is a file'}; name a new folder, or an empty one"
    here = out.resolve()
    around = next((folder for folder in (here, *here.parents) if _is_of_checkpoints(folder)), None)
    return None if around is None else f"is inside {around}, which holds checkpoints only; name another place"


def _is_of_checkpoints(folder: Path) -> bool:
    """Whether it is a checkpoint, plain weights, or the folder of a run's checkpoints."""
    named, configured = FOLDER_NAME.fullmatch(folder.name), (folder / OUR_CONFIG).exists()
    if (folder / MANIFEST).exists() and (named or configured):
        return True
    return folder.name == store.FOLDER and (bool(store.steps(folder)) or (folder.parent / OUR_CONFIG).exists())


@dataclass(frozen=True)
class _Content:
    """What goes into the folder besides tokenizer and card."""

    architecture: str | None
    tensors: list[Planned]
    texts: dict[str, str]
    """Of files, by name."""


def _content_for(to: str, plain: PlainWeights, tokenizer: Tokenizer, dtype: str) -> _Content:
    if to == "plain":
        weights = FoldedWeights(plain, plain.config.model, tokenizer.vocab_size)
        return _Content(None, [_ours(weights, name) for name in weights.names], {OUR_CONFIG: dump(_our_config(plain))})
    architecture, model = architecture_and_model(plain.config.model)
    weights = FoldedWeights(plain, model, tokenizer.vocab_size)
    tensors = _their_tensors(architecture, weights, plain.config.training.sequence_length)
    return _Content(architecture.class_name, tensors, _their_configs(architecture, weights, plain, tokenizer, dtype))


def _their_tensors(architecture: Architecture, weights: FoldedWeights, length: int) -> list[Planned]:
    shapes = parameter_shapes(weights.model, weights.vocab_size, length)
    ours = {name: weights.shape(name) for name in weights.names}
    assert shapes == ours, f"not the tensors of this model: {sorted(shapes.items() ^ ours.items())}"
    return [
        Planned(entry.theirs, entry.shape(shapes), partial(_pack, entry, weights, entry.shapes(shapes)))
        for entry in architecture.entries(weights.model, weights.vocab_size, length)
    ]


def _pack(entry: Entry, weights: FoldedWeights, shapes: Sequence[Shape]) -> Tensor:
    known = set(weights.names)
    missing = [name for name in entry.ours if name not in known]
    assert not missing or (entry.zeros and len(missing) == len(entry.ours)), f"{entry.theirs}: {missing} are missing"
    if missing:
        return torch.zeros(entry.form.shape(shapes))
    return entry.form.pack([weights.read(name) for name in entry.ours])


def _ours(weights: FoldedWeights, name: str) -> Planned:
    return Planned(name, weights.shape(name), partial(weights.read, name))


def _their_configs(
    architecture: Architecture, weights: FoldedWeights, plain: PlainWeights, tokenizer: Tokenizer, dtype: str
) -> dict[str, str]:
    """Texts of `config.json` and `generation_config.json`: no token begins a text, the end of a document ends one."""
    config = architecture.config(weights.model, tokenizer.vocab_size, plain.config.training.sequence_length)
    # Version 4 of transformers reads the latter of the two dtypes.
    config |= {"bos_token_id": None, "eos_token_id": tokenizer.eod, "pad_token_id": None}
    config |= {"dtype": dtype, "torch_dtype": dtype}
    generation = {"eos_token_id": tokenizer.eod, "pad_token_id": tokenizer.eod}
    return {CONFIG: _json(config), GENERATION: _json(generation)}


def _our_config(plain: PlainWeights) -> Config:
    """The run's configuration, of a model whose weights are plain and whole now and whose tables have no padding."""
    model = plain.config.model.model_copy(update={"reparam": ReparamConfig(), "vocab_multiple": 1})
    return plain.config.model_copy(update={"model": model, "parallel": ParallelConfig()})


def _write_manifest(folder: Path, plain: PlainWeights, shards: Shards, doubt: str | None) -> None:
    """What the weights are of and checksums of all that was written, for `exchange.plain.open_run`."""
    config = _our_config(plain).model_dump(mode="json")
    beside = {
        path.name: describe(path).model_dump() for path in sorted(folder.iterdir()) if path.name not in shards.files
    }
    journal = {BESIDE: beside, UNCHECKED: doubt}
    changed = {"config": config, "files": shards.files, "journal": journal, "stability": {}}
    write_manifest(folder, plain.manifest.model_copy(update=changed))


def _json(values: dict[str, Any]) -> str:
    return json.dumps(values, indent=2) + "\n"


@contextmanager
def _written_whole(out: Path) -> Iterator[Path]:
    """A folder in a hidden one beside `out` that becomes `out` if all goes well.

    The hidden one has a name of its own and goes in any case, but if the process is killed: then it stays, since
    nothing tells it from that of an export under way. Raises: ConfigError for an OSError.
    """
    with _reported(out):
        out.parent.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(
            prefix=f".{out.name}.", suffix=".tmp", dir=out.parent, ignore_cleanup_errors=True
        ) as own:
            scratch = Path(own) / out.name
            scratch.mkdir()
            yield scratch
            _move(scratch, out)


@contextmanager
def _reported(out: Path) -> Iterator[None]:
    """Raises: ConfigError for an OSError."""
    try:
        yield
    except OSError as error:
        why = ": ".join(str(part) for part in (error.filename, error.strerror) if part)  # a full disk has no name
        raise ConfigError(f"command line: --out = {out}: cannot be written: {why or error}") from error


def _move(scratch: Path, out: Path) -> None:
    """Over an empty folder, too. Raises: OSError; ConfigError if another has put something there meanwhile."""
    try:
        scratch.rename(out)
    except OSError:
        require_free(out)
        raise
