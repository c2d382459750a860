"""Which changes of the configuration a resumed run may have: none that change what is being trained."""

from pathlib import Path
from typing import Any

from pydantic_core import to_jsonable_python

from configs.describe import find, shown
from configs.errors import CheckpointError
from configs.flatten import flatten
from configs.schema import Config
from training.checkpoint.manifest import Manifest

FIXED = (
    "model",
    "training.seed",
    "training.global_batch_size",
    "training.sequence_length",
    "training.label_smoothing",
    "training.z_loss",
    "optimizer.name",
)
"""Sections and keys that say what is being trained."""

IN_THE_FINGERPRINT = ("training.seed", "training.sequence_length")
"""Keys that change the data fingerprint whatever the data."""

MAY_CHANGE = (
    "parallel.*, training.steps, micro_batch_size, precision, recompute, compile, eval_interval, eval_samples and "
    "device, optimizer.lr, betas, eps, weight_decay, clip, muon_momentum, sam_rho and qk_clip, schedule.*, "
    "monitoring.*, stability.*, alerts.*, checkpoint.*, profile.*, tracking.*, run.*, init_from, data.prefetch, and "
    "data.sources.*.path for a copy of the same data"
)

NOT_SET = object()


def changes(manifest: Manifest, config: Config, data_fingerprint: str) -> list[str]:
    """One line for each value that would change what is being trained: key, the checkpoint's value, the new one.

    Where data lie may change, what they are may not: they are compared by fingerprint (`data.samples.Samples`), which
    tells nothing about them once seed or sequence length differ.
    """
    changed = differences(_fixed(manifest.config), _fixed(config.model_dump(mode="json")))
    lines = list(changed.values())
    if manifest.data_fingerprint != data_fingerprint and not changed.keys() & set(IN_THE_FINGERPRINT):
        lines.append(_data_line(manifest, config, data_fingerprint))
    return lines


def require_compatible(folder: Path, manifest: Manifest, config: Config, data_fingerprint: str) -> None:
    """Raise CheckpointError, with a line for each difference, if `config` cannot continue this checkpoint's run."""
    if manifest.step > config.training.steps:
        raise CheckpointError(
            f"training.steps = {config.training.steps}: must be at least {manifest.step}, the step of {folder}"
        )
    different = changes(manifest, config, data_fingerprint)
    if not different:
        return
    raise CheckpointError(
        "\n".join(
            [
                f"{folder}: the run cannot be continued with this configuration, which trains something else; "
                "take these values back, or choose another run.name:",
                *(f"  {line}" for line in different),
                f"What may change: {MAY_CHANGE}.",
            ]
        )
    )


def differences(then: dict[str, Any], now: dict[str, Any]) -> dict[str, str]:
    """For each dotted key of which a checkpoint (`then`) has another value than `now`, the line that says so.

    A key that the checkpoint's version did not know yet has its default: what a new key adds is off by default.
    """
    pairs = {key: (then.get(key, _default(key)), now.get(key, NOT_SET)) for key in then | now}
    return {key: _line(key, before, after) for key, (before, after) in pairs.items() if before != after}


def _default(key: str) -> object:
    info = find(key)
    if info is None or info.is_required():
        return NOT_SET
    return to_jsonable_python(info.get_default(call_default_factory=True))


def _fixed(config: dict[str, Any]) -> dict[str, Any]:
    """The values of FIXED by dotted key."""
    values = dict(flatten(config))
    return {key: values[key] for key in values if any(f"{key}.".startswith(f"{fixed}.") for fixed in FIXED)}


def _line(key: str, then: object, now: object) -> str:
    return f"{key} = {_shown(now)}: the checkpoint has {_shown(then)}"


def _data_line(manifest: Manifest, config: Config, fingerprint: str) -> str:
    then = manifest.config["data"]["sources"]
    now = config.model_dump(mode="json")["data"]["sources"]
    return (
        f"data.sources = {_sources(now)} (fingerprint {fingerprint[:12]}): "
        f"the checkpoint has {_sources(then)} (fingerprint {manifest.data_fingerprint[:12]})"
    )


def _sources(sources: list[dict[str, Any]]) -> str:
    return ", ".join(f"{source['path']} x {source['weight']:g}" for source in sources)


def _shown(value: object) -> str:
    return "no such key" if value is NOT_SET else shown(value)
