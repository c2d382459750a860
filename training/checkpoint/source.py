"""Which checkpoint `init_from` names, and whether its weights mean in this run's model what they meant in its own.

Nothing here needs torch: the launcher asks before it deletes or starts anything.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from configs.errors import CheckpointError, ConfigError
from configs.flatten import flatten
from configs.schema import Config, ModelConfig, ReparamConfig
from training.checkpoint import store
from training.checkpoint.manifest import FOLDER_NAME, MANIFEST, Manifest
from training.checkpoint.resume import differences

FREE = (
    "model.reparam",
    "model.init",
    "model.init_std",
    "model.depth_scaled_init",
    "model.residual.layerscale_init",
)
"""What may differ in the model: the reparametrisation, which is translated, and how random weights would start."""


@dataclass(frozen=True)
class Source:
    """A checkpoint to take weights from; `passed_over` says why newer ones of its run were not taken."""

    folder: Path
    manifest: Manifest
    passed_over: list[str]

    def model(self, config: Config) -> ModelConfig:
        """The checkpoint's model: `config`'s, as `check_model` found, with the checkpoint's own reparametrisation."""
        reparam = ReparamConfig.model_validate(self.manifest.config["model"]["reparam"])
        return config.model.model_copy(update={"reparam": reparam})


def choose(config: Config) -> Source:
    """The newest checkpoint that `init_from` names whose every byte is as written.

    Raises: ConfigError if it names none; CheckpointError if there is no good one, or it is of another model.
    """
    assert config.init_from is not None
    folders = _candidates(config.init_from)
    with naming(config):
        if folders == [config.init_from]:
            source = Source(folders[0].resolve(), store.verify(folders[0], read_bytes=True), [])
        else:
            found = store.newest_good(config.init_from / store.FOLDER)
            if found is None:  # deleted since we looked
                raise CheckpointError("its checkpoints are gone")
            source = Source(*found)
        check_model(source.folder, source.manifest, config)
    return source


def check_before_launch(config: Config) -> None:
    """As `choose`, by manifests, sizes and headers: whether every byte is as written, training finds out and says.

    Raises: ConfigError, CheckpointError.
    """
    assert config.init_from is not None
    if config.hub_folder is not None:
        from training.checkpoint.hub import open_hub  # which imports torch

        open_hub(config)
        return
    damaged: list[CheckpointError] = []
    for folder in _candidates(config.init_from):
        try:
            manifest = store.verify(folder, read_bytes=False)
        except CheckpointError as error:
            damaged.append(error)
            continue
        with naming(config):
            check_model(folder, manifest, config)
        return
    with naming(config):
        raise damaged[0]


def check_model(folder: Path, manifest: Manifest, config: Config) -> None:
    """Raise CheckpointError, with a line for each difference, if the weights mean something else in this model."""
    then = manifest.config.get("model")
    if not isinstance(then, dict):
        raise CheckpointError(f"{folder}: its {MANIFEST} does not say what model it is of")
    require_same_model(folder, then, config)
    try:
        ReparamConfig.model_validate(then.get("reparam"))
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(map(str, ("model", "reparam", *first["loc"])))
        raise CheckpointError(f"{folder}: {key}: is not known to this version: {first['msg']}") from None


def require_same_model(folder: Path, then: dict[str, Any], config: Config) -> None:
    """Raise CheckpointError, with a line for each difference, unless `then`, a model section, means `config`'s."""
    different = differences(_meaning(then), _meaning(config.model.model_dump(mode="json")))
    if different:
        raise CheckpointError(
            "\n".join(
                [
                    f"{folder}: its weights are of another model; take its values, or other weights:",
                    *(f"  {line}" for line in different.values()),
                    f"What may differ in the model: {', '.join(FREE)}.",
                ]
            )
        )


@contextmanager
def naming(config: Config) -> Iterator[None]:
    """Have an error about a checkpoint say which key names it."""
    try:
        yield
    except CheckpointError as error:
        raise CheckpointError(f"init_from = {config.init_from}: {error}") from None


def _candidates(init_from: Path) -> list[Path]:
    """The checkpoints that a path names, newest first: itself, or those of the run it is."""
    try:
        if not init_from.is_dir():
            what = "is a file" if init_from.exists() else "no such folder"
            raise ConfigError(
                f"init_from = {init_from}: {what}; name a run, such as runs/tiny, or one of its checkpoints"
            )
        if (init_from / MANIFEST).exists() or FOLDER_NAME.fullmatch(init_from.resolve().name):
            return [init_from]
        folders = store.steps(init_from / store.FOLDER)
    except OSError as error:
        raise ConfigError(f"init_from = {init_from}: cannot be read: {error.strerror}") from None
    if not folders:
        raise ConfigError(
            f"init_from = {init_from}: holds no checkpoint; name a run that has some (checkpoint.interval sets when "
            "they are saved), or one of its checkpoints"
        )
    return folders


def _meaning(model: dict[str, Any]) -> dict[str, Any]:
    """The values of a model section that say what its parameters mean, by dotted key."""
    values = dict(flatten({"model": model}))
    return {key: values[key] for key in values if not any(f"{key}.".startswith(f"{free}.") for free in FREE)}
