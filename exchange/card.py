"""The README of an exported model: what it is, what it was trained on, how, and by which command it came here."""

import sys
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

import yaml

from configs.schema import Config
from exchange.origin import datasets, run_folder, why_no_data
from exchange.plain import PlainWeights
from monitoring.recorder import read_metrics
from training.checkpoint.manifest import MANIFEST

PACKAGES = ("steadytrain", "torch", "safetensors", "tokenizers")
LOSSES = {"loss": "training loss", "val_loss": "validation loss"}


def write_card(
    folder: Path,
    plain: PlainWeights,
    title: str,
    architecture: str | None,
    dtype: str,
    command: str,
    unchecked: str | None,
) -> None:
    """Write `README.md`; `architecture`: the class of transformers, None for weights under our names.

    `unchecked`: why the tokenizer is not known to be the model's.
    """
    lines = [
        "---",
        *(["library_name: transformers"] if architecture else []),
        "pipeline_tag: text-generation",
        "tags: [steadytrain]",
        "---",
        f"# {_one_line(title)}",
        "",
        *_what(plain, architecture, dtype),
        "",
        "## Training",
        "",
        *_training(plain),
        "",
        "## Data",
        "",
        *_data(plain),
        *([] if unchecked is None else [f"- the tokenizer was given by hand: {_one_line(unchecked)}"]),
        "",
        "## Configuration",
        "",
        "```yaml",
        yaml.safe_dump(_sections(plain.config), sort_keys=False, default_flow_style=None, width=100).rstrip(),
        "```",
        "",
        "## Made by",
        "",
        "```",
        command,
        "```",
        ", ".join([f"Python {sys.version.split()[0]}", *(f"{name} {version(name)}" for name in PACKAGES)]) + ".",
    ]
    text = "\n".join(lines) + "\n"
    (folder / "README.md").write_bytes(text.encode(errors="replace"))  # names of files may be no Unicode


def _one_line(text: object) -> str:
    """Names may hold newlines, which would end a heading or an entry."""
    return " ".join(str(text).split())


def _what(plain: PlainWeights, architecture: str | None, dtype: str) -> Iterator[str]:
    model, length = plain.config.model, plain.config.training.sequence_length
    yield (
        f"A decoder language model: {model.layers} layers of width {model.hidden_size}, {model.heads} query heads, "
        f"{model.key_value_heads} key/value heads, sequences of {length} tokens, weights in {dtype}."
    )
    if model.reparam.kind == "sigma":
        yield "Trained with sigmaReparam (Zhai et al. 2023); gamma / sigma is folded into the weights."
    yield ""
    if architecture is None:
        yield "Weights as Steadytrain names them; `steadytrain generate` opens this folder."
        return
    yield "```python"
    yield f"from transformers import AutoModelForCausalLM, AutoTokenizer  # {architecture}"
    yield 'model = AutoModelForCausalLM.from_pretrained("DIR")'
    yield 'tokenizer = AutoTokenizer.from_pretrained("DIR")'
    yield "```"


def _training(plain: PlainWeights) -> Iterator[str]:
    manifest, training = plain.manifest, plain.config.training
    tokens = manifest.step * training.global_batch_size * training.sequence_length
    yield f"- run: `{_one_line(plain.config.run.name)}`, step {manifest.step:,}, {tokens:,} tokens"
    for key, name in LOSSES.items():
        for step, value in _last(plain, key):
            yield f"- {name}: {value:.4f} (step {step:,})"
    checksum = plain.describe_manifest().sha256  # which names the checksum of every other file
    yield f"- checkpoint: `{plain.folder.name}`, SHA-256 of its {MANIFEST}: `{checksum}`"
    yield f"- layout: {', '.join(f'{key} {value}' for key, value in manifest.layout.items())}"


def _last(plain: PlainWeights, key: str) -> Iterator[tuple[int, float]]:
    """(step, value) of the last time that a loss was logged up to the checkpoint; none if nothing says."""
    run = run_folder(plain)
    lines = read_metrics(run) if run is not None and (run / "metrics.jsonl").exists() else []
    known = [(line["step"], line[key]) for line in lines if key in line and line["step"] <= plain.manifest.step]
    if known:
        yield known[-1]
    elif key == "val_loss" and plain.manifest.val_loss is not None:
        yield plain.manifest.step, plain.manifest.val_loss


def _data(plain: PlainWeights) -> Iterator[str]:
    yield f"- fingerprint of the samples: `{plain.manifest.data_fingerprint}`"
    lost = why_no_data(plain) is not None
    for source, (place, manifest) in zip(plain.config.data.sources, datasets(plain), strict=True):
        folder = _one_line(place)
        weight = f", weight {source.weight:g}" if len(plain.config.data.sources) > 1 else ""
        if manifest is None:
            yield f"- `{folder}`{weight} (not there when this was written)"
            continue
        if lost:
            yield f"- `{folder}`{weight} (what lay there when this was written is not known to be it)"
            continue
        tokenizer = manifest.tokenizer
        yield (
            f"- `{folder}`{weight}: {manifest.train.tokens:,} training tokens in {manifest.train.documents:,} "
            f"documents, {tokenizer.kind} tokenizer of {tokenizer.vocab_size:,} tokens, "
            f"fingerprint `{manifest.fingerprint}`"
        )
        for part in manifest.sources:
            line = f"  - {_one_line(part.input)}: {part.documents:,} documents"
            yield line if part.bytes is None else f"{line}, {part.bytes:,} bytes"


def _sections(config: Config) -> dict[str, object]:
    """What was trained and how, as YAML that a run can extend; of policies only what is not default."""
    values = config.model_dump(mode="json", include={"model", "training", "optimizer", "schedule"})
    stability = config.stability.model_dump(mode="json", exclude_defaults=True)
    return {**values, "stability": stability} if stability else values
