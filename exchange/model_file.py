"""The configuration of a run that starts from a Hugging Face checkpoint, as a file to extend."""

import json
from pathlib import Path

import yaml

from configs.errors import CheckpointError, ConfigError
from configs.schema import HUB, ModelConfig
from formats.hub import HubCheckpoint

NOT_THEIRS = {"reparam", "low_rank", "residual", "init", "depth_scaled_init", "vocab_multiple", "embedding_norm"}
"""What no checkpoint says: it stays at its default."""


def write_model_file(folder: Path, out: Path) -> str:
    """Write `out` and say in one line what it is of.

    Raises: CheckpointError if the checkpoint cannot be expressed; ConfigError if `out` cannot be written or is there.
    """
    if not folder.is_dir():
        raise ConfigError(f"{folder}: no such folder; name one with config.json and .safetensors files")
    checkpoint = _open(folder)
    text = _text(checkpoint, folder)
    try:
        with out.open("x", encoding="utf-8") as file:
            file.write(text)
    except OSError as error:
        raise ConfigError(f"command line: --out = {out}: cannot be written: {error.strerror}") from error
    return f"{out}: {checkpoint.architecture.class_name} of {folder}; extend it, and add data of its tokenizer"


def _open(folder: Path) -> HubCheckpoint:
    """As a model without biases, if its architecture has them only because it must, and they are zero."""
    checkpoint = HubCheckpoint(folder, ModelConfig(bias=True))
    if checkpoint.architecture.biases_forced:
        without = HubCheckpoint(folder, ModelConfig(bias=False))
        try:
            without.check_numbers()
        except CheckpointError:
            pass  # it has biases, or has something wrong that it has with biases, too
        else:
            return without
    checkpoint.check_numbers()
    return checkpoint


def _text(checkpoint: HubCheckpoint, folder: Path) -> str:
    model = checkpoint.model.model_dump(mode="json", exclude=NOT_THEIRS)
    if checkpoint.model.tie_embeddings:
        model["reparam"] = {"head": False}  # what a tied head must have if model.reparam.kind is to be sigma
    length = f"training: {{sequence_length: {checkpoint.length}}}"
    learned = checkpoint.model.positions == "learned"
    name = str(folder) if str(folder).isprintable() else json.dumps(str(folder))  # a comment is one line
    lines = [
        f"# {checkpoint.architecture.class_name} of {name}. Add data prepared with its tokenizer:",
        "#   data: {sources: [{path: ...}]}",
        *([length] if learned else [f"# Its longest sequence: {length}"]),
        yaml.safe_dump({"init_from": f"{HUB}{folder.resolve()}", "model": model}, sort_keys=False).rstrip(),
    ]
    return "\n".join(lines) + "\n"
