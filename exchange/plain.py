"""A checkpoint as plain weights, one tensor at a time: whole whatever the layout was, gamma / sigma folded in.

Nothing of the training's size is built: no process group, no model, no GPU. Memory holds the tensor asked for.

Shapes: K matrices packed in one weight; O out-features of a projection, I in-features.
"""

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from pydantic import TypeAdapter, ValidationError
from safetensors import SafetensorError, safe_open
from torch import Tensor

from configs.errors import CheckpointError
from configs.schema import Config
from model import attention, feedforward
from training.checkpoint import store
from training.checkpoint.manifest import FOLDER_NAME, MANIFEST, FileRecord, Manifest, describe, read_manifest

PARAMETERS, SPECTRA = "model/", "spectral/"
THEIR_CONFIG = "config.json"
SHARDING = "DCP_SHARDING_INFO"
OUR_CONFIG = "config.yaml"
"""The run's configuration, in a folder of exported plain weights."""
BESIDE, UNCHECKED = "beside", "unchecked"
"""In the journal of such a folder's manifest: the files beside the weights with their size and SHA-256, by name; why
their tokenizer could not be checked, or null."""
ATTEMPTS = 5
"""To open the newest checkpoint of a run that prunes them meanwhile."""


class CheckpointGone(CheckpointError):
    """A checkpoint that was there has been deleted since."""


@dataclass(frozen=True)
class _Part:
    """One rank's part of a tensor: the file that holds it and its name there, where in the whole it begins and ends."""

    file: Path
    key: str
    place: tuple[slice, ...]


class PlainWeights:
    """Parameters of a checkpoint under their names in the model; a packed weight is a tensor per projection.

    Names are those of `Decoder.named_parameters` with the projection behind a slash where several are stacked
    (`layers.0.attention.qkv.weight/q`); gammas are folded and have no name here. Tables of tokens have their padding
    rows still: who knows the tokenizer cuts them off.
    """

    def __init__(self, folder: Path, manifest: Manifest, passed_over: Sequence[str] = ()) -> None:
        """`folder`: a checkpoint that was verified; `passed_over`: why newer ones of its run were not taken.

        Raises: CheckpointError if this version cannot read its config; CheckpointGone.
        """
        self.folder, self.manifest, self.passed_over = folder, manifest, list(passed_over)
        try:
            self.config = Config.model_validate(manifest.config)
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            where = ".".join(map(str, first["loc"]))
            raise CheckpointError(f"{folder}: of another version of steadytrain: {where}: {first['msg']}") from None
        with _reading(folder):
            self._parts = _parts(folder, manifest)

    @property
    def names(self) -> list[str]:
        """Every parameter, gammas excepted."""
        names = (name.removeprefix(PARAMETERS) for name in self._parts if name.startswith(PARAMETERS))
        return [name for name in names if not name.endswith(".gamma")]

    def shape(self, name: str) -> tuple[int, ...]:
        """Of the whole tensor."""
        return _shape(self._parts[PARAMETERS + name])

    def read(self, name: str) -> Tensor:
        """The whole tensor in fp32, as the model multiplies by it: W, or (gamma / sigma) W.

        Raises: CheckpointGone; CheckpointError if it cannot be read.
        """
        tensor = self._read(PARAMETERS + name)
        layer, _, what = name.rpartition(".")
        weight, _, block = what.partition("/")
        if weight == "weight" and f"{PARAMETERS}{layer}.gamma" in self._parts:
            gamma_K, sigma_K = self._read(f"{PARAMETERS}{layer}.gamma"), self._read(f"{SPECTRA}{layer}/sigma")
            tensor *= (gamma_K / sigma_K)[self._matrix(layer, block)]
        return tensor

    def _read(self, name: str) -> Tensor:
        parts = self._parts[name]
        whole = torch.empty(_shape(parts))
        for part in parts:
            # Opened for this tensor only: pages that were read do not stay in the process.
            with _reading(self.folder), safe_open(part.file, framework="pt") as file:
                whole[part.place] = file.get_tensor(part.key)
        return whole

    def describe_manifest(self) -> FileRecord:
        """Size and SHA-256 of the manifest. Raises: CheckpointGone; CheckpointError if it cannot be read."""
        with _reading(self.folder):
            return describe(self.folder / MANIFEST)

    def _matrix(self, layer: str, block: str) -> int:
        """Which gamma of a layer belongs to a projection."""
        model, kind = self.config.model, layer.rpartition(".")[2]
        if kind == "low_rank":
            return [str(target) for target in attention.PROJECTIONS if target in model.low_rank.targets].index(block)
        matrices = {
            "qkv": attention.MATRICES[model.reparam.qkv],
            "gate_up": feedforward.MATRICES[model.reparam.gate_up],
        }.get(kind, ((block,),))
        return next(index for index, matrix in enumerate(matrices) if block in matrix)


def open_run(path: Path, step: int | None = None) -> PlainWeights:
    """The weights of a run (its newest good checkpoint, or that of `step`), of one checkpoint's folder, or of a folder
    that `steadytrain export --to plain` wrote.

    Every byte is verified first. Raises: CheckpointError if there is none, or none that is good; CheckpointGone if one
    that was asked for is deleted meanwhile: of a run's newest the next newest is taken.
    """
    folder = path.resolve()  # at once: `latest` may lead elsewhere a moment later
    if FOLDER_NAME.fullmatch(folder.name) and (folder / MANIFEST).exists():
        if step is not None:
            raise CheckpointError(f"{path}: is one checkpoint already: leave --step {step} out, or name its run")
        return _open_checkpoint(folder)
    if (path / MANIFEST).exists() and (path / OUR_CONFIG).exists():
        return PlainWeights(path.resolve(), _verify_exported(path, step))
    if not path.is_dir():
        raise CheckpointError(f"{path}: no such folder; give the folder of a run, such as runs/tiny")
    folders = store.steps(path / store.FOLDER)
    if not folders and (path / THEIR_CONFIG).exists():
        raise CheckpointError(
            f"{path}: is a Hugging Face checkpoint, which transformers opens; name the run it came from, export that "
            f"with --to plain, or train from it with init_from=hf:{path}"
        )
    if not folders:
        raise CheckpointError(f"{path}: has no checkpoint; checkpoint.interval sets when a run saves them")
    if step is None:
        return _open_newest(path)
    steps = [int(folder.name.removeprefix("step-")) for folder in folders]
    if step not in steps:
        raise CheckpointError(f"{path}: has no checkpoint of step {step} (those of {', '.join(map(str, steps[::-1]))})")
    return _open_checkpoint(folders[steps.index(step)])


def _open_newest(run: Path) -> PlainWeights:
    """Started anew, a few times, if what it looks at is pruned meanwhile."""
    for left in reversed(range(ATTEMPTS)):
        folders = store.steps(run / store.FOLDER)
        try:
            found = store.newest_good(run / store.FOLDER)
            if found is None:
                raise CheckpointGone(f"{run}: its checkpoints are gone: deleted meanwhile")
            return PlainWeights(*found)
        except CheckpointError as error:
            pruned = isinstance(error, CheckpointGone) or not all(folder.exists() for folder in folders)
            if not pruned or not left:
                raise
    raise AssertionError("the last attempt raises")


def _open_checkpoint(folder: Path) -> PlainWeights:
    with _reading(folder):
        return PlainWeights(folder, store.verify(folder, read_bytes=True))


@contextmanager
def _reading(folder: Path) -> Iterator[None]:
    """What fails because a checkpoint was deleted says so. Raises: CheckpointGone, CheckpointError."""
    try:
        yield
    except (OSError, RuntimeError, SafetensorError, CheckpointError) as error:  # RuntimeError: of torch's own opening
        if not folder.exists():
            raise CheckpointGone(f"{folder}: is gone: pruned by the run meanwhile") from error
        if isinstance(error, (RuntimeError, CheckpointError)):
            raise
        raise CheckpointError(f"{folder}: cannot be read: {' '.join(str(error).split())}") from error


def _verify_exported(path: Path, step: int | None) -> Manifest:
    """The manifest of exported plain weights, every byte of which is as written; other files may lie beside them."""
    if step is not None:
        raise CheckpointError(f"{path}: holds the weights of one step: leave --step {step} out")
    manifest = read_manifest(path)
    for name, record in (manifest.files | _beside(path, manifest)).items():
        try:
            found = describe(path / name)
        except OSError as error:
            raise CheckpointError(f"{path / name}: cannot be read: {error.strerror}") from error
        if found != record:
            raise CheckpointError(f"{path / name}: changed since it was written: its checksum is another")
    return manifest


def _beside(path: Path, manifest: Manifest) -> dict[str, FileRecord]:
    """Configuration and tokenizer: files without which, or with others, the weights are another model."""
    try:
        records = TypeAdapter(dict[str, FileRecord]).validate_python(manifest.journal[BESIDE])
    except (KeyError, ValidationError):
        raise CheckpointError(f"{path}: of another version of steadytrain: {MANIFEST} seals no tokenizer") from None
    return records


def _parts(folder: Path, manifest: Manifest) -> dict[str, list[_Part]]:
    """Where every tensor's parts lie. Raises: CheckpointError if a tensor is not whole."""
    found: dict[str, list[_Part]] = {}
    for name in manifest.files:
        for key, part in _in_file(folder / name):
            found.setdefault(key, []).append(part)
    for key, parts in found.items():
        shape = _shape(parts)
        if torch.Size(shape).numel() != sum(_numel(part) for part in parts):
            raise CheckpointError(f"{folder}: {key} is not whole: its parts do not make {shape}")
    return found


def _in_file(path: Path) -> Iterator[tuple[str, _Part]]:
    with safe_open(path, framework="pt") as file:
        if SHARDING not in file.metadata():  # exported: whole tensors, parameters only
            for key in file.keys():  # noqa: SIM118 (no mapping)
                yield PARAMETERS + key, _Part(path, key, tuple(slice(0, n) for n in file.get_slice(key).get_shape()))
            return
        offsets = json.loads(file.metadata()[SHARDING])
        for key in file.keys():  # noqa: SIM118 (no mapping)
            sizes = file.get_slice(key).get_shape()
            starts = offsets[key]["saved_offsets"]
            yield key, _Part(path, key, tuple(slice(a, a + n) for a, n in zip(starts, sizes, strict=True)))


def _shape(parts: list[_Part]) -> tuple[int, ...]:
    return tuple(max(ends) for ends in zip(*([side.stop for side in part.place] for part in parts), strict=True))


def _numel(part: _Part) -> int:
    return torch.Size(side.stop - side.start for side in part.place).numel()
