"""What a checkpoint folder must hold, and the check that it does: `manifest.json` names every other file.

The manifest's first line is the SHA-256 of all that follows it, so that one flipped byte is found in it too. Nothing
here executes what a file says: the manifest is JSON, every other file must have the header of a safetensors file.
"""

import hashlib
import os
import re
import stat
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field, ValidationError
from safetensors import SafetensorError, safe_open

from configs.errors import CheckpointError
from configs.section import Section

MANIFEST = "manifest.json"
FOLDER_NAME = re.compile(r"step-([0-9]{8}|[1-9][0-9]{8,})")

# The manifest on disk is one JSON object whose first key seals the bytes after the first line.
_SEAL = re.compile(rb'\{"sha256": "([0-9a-f]{64})",\n')

FileName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*\.safetensors$")]


class FileRecord(Section):
    """Size in bytes and SHA-256 (hexadecimal) of one file."""

    size: int = Field(ge=0)
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")


class Manifest(Section):
    """What a checkpoint is of, and every file it consists of.

    `config` and `journal` hold what JSON can say; NaN and infinities come back as they were, tuples as lists.
    """

    model_config = ConfigDict(strict=True, ser_json_inf_nan="constants")

    format: Literal[1] = 1
    step: int = Field(ge=0)
    """Optimizer steps taken."""
    created: float
    """Unix time in seconds."""
    layout: dict[str, int | str]
    """tp, pp, dp, schedule, zero_stage, precision of the run that wrote it."""
    config: dict[str, Any]
    data_fingerprint: str
    val_loss: float | None = None
    journal: dict[str, Any]
    """State of the run beside the tensors."""
    skipped: int = Field(0, ge=0)
    """Steps whose update was left out."""
    stability: dict[str, Any] = Field(default_factory=dict)
    """State of guard, detectors and policies."""
    files: dict[FileName, FileRecord] = Field(min_length=1)


def describe(path: Path) -> FileRecord:
    """Read a file and measure it. Raises OSError."""
    with path.open("rb") as file:
        checksum = hashlib.file_digest(file, "sha256").hexdigest()  # in blocks: a shard may be larger than memory
        return FileRecord(sha256=checksum, size=os.fstat(file.fileno()).st_size)


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Write and fsync `manifest.json`. Raises OSError."""
    body = manifest.model_dump_json(indent=1).encode().removeprefix(b"{\n") + b"\n"
    with (folder / MANIFEST).open("wb") as file:
        file.write(b'{"sha256": "%s",\n' % hashlib.sha256(body).hexdigest().encode() + body)
        file.flush()
        os.fsync(file.fileno())


def read_manifest(folder: Path) -> Manifest:
    """The manifest of a checkpoint folder; its files are not looked at.

    Raises: CheckpointError if it is missing, torn, changed since it was written, or of an unknown format.
    """
    path = folder / MANIFEST
    _regular_file_size(path)
    try:
        content = path.read_bytes()
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror}") from error
    seal = _SEAL.match(content)
    if seal is None:
        raise CheckpointError(f"{path}: is no manifest of a checkpoint, or torn: its first line holds no checksum")
    body = content[seal.end() :]
    if hashlib.sha256(body).hexdigest().encode() != seal[1]:
        raise CheckpointError(f"{path}: torn or changed: its checksum does not match")
    try:
        return Manifest.model_validate_json(b"{" + body)
    except ValidationError as error:
        raise CheckpointError(f"{path}: {_first_complaint(error)}") from error


def verify(folder: Path, *, read_bytes: bool) -> Manifest:
    """Check that a checkpoint folder holds what its manifest says, and nothing else.

    Names, sizes and safetensors headers are always checked, every byte against its checksum only with `read_bytes`.
    The folder itself may be a symbolic link (`latest`), no file in it may.
    Raises: CheckpointError naming the folder, the file and what is wrong with it.
    """
    try:
        names = set(os.listdir(folder))
    except OSError as error:
        raise CheckpointError(f"{folder}: cannot be read as a checkpoint folder: {error.strerror}") from error
    manifest = read_manifest(folder)
    named = FOLDER_NAME.fullmatch(folder.resolve().name)
    if named and int(named[1]) != manifest.step:
        raise CheckpointError(f"{folder}: {MANIFEST} is of step {manifest.step}, not of this folder's")
    for name in sorted(names - manifest.files.keys() - {MANIFEST}):
        raise CheckpointError(f"{folder}: {name!r} does not belong to the checkpoint: {MANIFEST} does not name it")
    for name, record in manifest.files.items():
        size = _regular_file_size(folder / name)
        if size != record.size:
            raise CheckpointError(f"{folder / name}: has {size} bytes, {MANIFEST} says {record.size}")
        _check_header(folder / name)
    if read_bytes:
        for name, record in manifest.files.items():
            _check_bytes(folder / name, record)
    return manifest


def _regular_file_size(path: Path) -> int:
    try:
        status = path.lstat()
    except FileNotFoundError as error:
        raise CheckpointError(f"{path}: is missing") from error
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror}") from error
    if not stat.S_ISREG(status.st_mode):
        raise CheckpointError(f"{path}: is no regular file (a checkpoint holds no links or folders)")
    return status.st_size


def _check_header(path: Path) -> None:
    try:
        with safe_open(path, framework="numpy"):  # maps the file and reads its header, no tensor
            pass
    except (SafetensorError, OSError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise CheckpointError(f"{path}: is no safetensors file and is not loaded: {reason}") from error


def _check_bytes(path: Path, record: FileRecord) -> None:
    try:
        found = describe(path)
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror}") from error
    if found != record:
        raise CheckpointError(f"{path}: changed since it was written: its checksum does not match {MANIFEST}")


def _first_complaint(error: ValidationError) -> str:
    """One line; the format comes first, since another format explains every other complaint."""
    first = min(error.errors(), key=lambda complaint: complaint["loc"] != ("format",))
    if first["loc"] == ("format",):
        return f"format {first['input']!r} is not known to this version, which reads format 1"
    where = ".".join(map(str, first["loc"]))
    return f"{where!r}: {first['msg']}" if where else first["msg"]
