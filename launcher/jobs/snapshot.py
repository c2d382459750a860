"""What a queued job will run: a copy of the packages and of the configuration, untouched by later edits."""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import launcher
from configs.atomic import write_atomically
from configs.load import dump
from configs.schema import HUB, Config

PACKAGES = (
    "comparison", "configs", "data", "formats", "launcher", "model", "monitoring", "parallel", "stability", "training",
)  # fmt: skip
SUFFIXES = (".py", ".yaml", ".j2")
"""What the packages consist of; in a checkout, a folder such as data/ may also hold datasets of the user's."""
CODE, CONFIG = "code", "config.yaml"


def take_code(folder: Path) -> Path:
    """Copy the packages into `folder/code`, which becomes the job's working folder. Raises OSError."""
    source = Path(launcher.__file__).resolve().parent.parent
    target = folder / CODE
    for package in PACKAGES:
        for path in _files(source / package):
            copy = target / path.relative_to(source)
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, copy)
    return target


def discard(folder: Path) -> None:
    """Delete the snapshots in `folder` that earlier jobs of a run left; none of them is queued. Raises OSError."""
    if folder.is_dir():
        shutil.rmtree(folder)


def _files(package: Path) -> Iterator[Path]:
    for folder, folders, names in os.walk(package):
        folders[:] = sorted(name for name in folders if not name.startswith((".", "__")))
        yield from (Path(folder, name) for name in sorted(names) if name.endswith(SUFFIXES))


def take_config(folder: Path, config: Config) -> Path:
    """Write `folder/config.yaml`, with paths that mean the same in any working folder. Raises OSError."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / CONFIG
    write_atomically(path, dump(with_absolute_paths(config)))
    return path


def with_absolute_paths(config: Config) -> Config:
    """The configuration with every relative path made absolute from the working folder."""
    sources = [source.model_copy(update={"path": source.path.absolute()}) for source in config.data.sources]
    changes: dict[str, Any] = {
        "run": config.run.model_copy(update={"dir": config.run.dir.absolute()}),
        "data": config.data.model_copy(update={"sources": sources}),
        "tracking": config.tracking.model_copy(update={"uri": _tracking_uri(config)}),
    }
    if config.init_from is not None:
        hub = config.hub_folder
        changes["init_from"] = config.init_from.absolute() if hub is None else Path(f"{HUB}{hub.absolute()}")
    return config.model_copy(update=changes)


def _tracking_uri(config: Config) -> str | None:
    """`tracking.uri`, and MLFLOW_TRACKING_URI where it would mean another store in the job's working folder."""
    variable = os.environ.get("MLFLOW_TRACKING_URI") or None
    if config.tracking.uri is None and variable is not None and _absolute_uri(variable) != variable:
        return _absolute_uri(variable)
    return _absolute_uri(config.tracking.uri)


def _absolute_uri(uri: str | None) -> str | None:
    """A store named by a path; servers' addresses and absolute paths stay."""
    if uri is None:
        return None
    for scheme in ("sqlite:///", "file:"):
        path = uri.removeprefix(scheme)
        if path != uri:
            return uri if path.startswith("/") else f"{scheme}{Path(path).absolute()}"
    return uri if ":" in uri or uri.startswith("databricks") else str(Path(uri).absolute())
