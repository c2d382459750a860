"""A Hugging Face checkpoint on disk, read as tensors of ours: nothing is downloaded, nothing it says is executed.

Shapes: O out-features, I in-features.
"""

import json
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from configs.errors import CheckpointError
from configs.schema import ModelConfig
from formats.architectures.choice import architecture_of
from formats.architectures.ours import Shape, parameter_shapes
from formats.architectures.tensors import SAME, Entry

CONFIG, TOKENIZER = "config.json", "tokenizer.json"
FLOATS = ("F64", "F32", "F16", "BF16")
TABLES = ("embedding.weight", "head.weight/head")
"""What has a row for each token."""
IGNORED = (".rotary_emb.inv_freq",)
"""Endings of tensors that older versions saved and that follow from the configuration."""


class HubCheckpoint:
    """A folder with `config.json` and safetensors files, of an architecture that `formats.architectures` knows."""

    def __init__(self, folder: Path, base: ModelConfig) -> None:
        """Reads the configuration and the headers; what the former does not say is `base`'s.

        Raises: CheckpointError, one line: no such folder, or not a model that we can express.
        """
        self.folder = folder
        values = _read_json(folder / CONFIG)
        try:
            if values.get("quantization_config"):
                raise CheckpointError("quantization_config: quantised weights cannot be read")
            self.architecture = architecture_of(values)
            self.model = self.architecture.model(values, base)
            self.vocab_size = _whole_number(values, "vocab_size")
            self.length = _whole_number(values, self.architecture.length_key)
        except CheckpointError as error:
            raise CheckpointError(f"{folder / CONFIG}: {error}") from None
        self.shapes = parameter_shapes(self.model, self.vocab_size, self.length)
        self._files = dict(self._find_tensors())
        self._check_headers()

    def read(self, name: str, place: tuple[slice, ...] = ()) -> Tensor:
        """A part of one of our tensors, in fp32; `place`: where, default the whole.

        Only the part is read, unless theirs is laid out otherwise; memory holds one of theirs.
        """
        entry, index = self._entries[name]
        if entry.form is SAME:
            with self._open(entry.theirs) as file:
                part = file.get_slice(entry.theirs)
                return part[place or tuple(slice(None) for _ in part.get_shape())].float()
        with self._open(entry.theirs) as file:
            whole = file.get_tensor(entry.theirs).float()
        return entry.form.unpack(whole, entry.shapes(self.shapes))[index][place or ...].contiguous()

    def check_numbers(self) -> None:
        """Read what their architecture has and ours has not: biases must be zero, copies of one scale equal.

        Raises: CheckpointError.
        """
        for entry in self._all:
            absent = [name for name in entry.ours if name not in self.shapes]
            if absent and self._theirs(entry).any():
                raise CheckpointError(
                    f"{self.folder}: {entry.theirs} is not zero, and with model.bias = {str(self.model.bias).lower()} "
                    "there is no such bias"
                )
            if not absent and self._entries[entry.ours[0]][0] != entry:
                first = self._entries[entry.ours[0]][0]
                if not torch.equal(self._theirs(entry), self._theirs(first)):
                    raise CheckpointError(
                        f"{self.folder}: {entry.theirs} differs from {first.theirs}: all heads share one scale here"
                    )

    @cached_property
    def _all(self) -> list[Entry]:
        return self.architecture.entries(self.model, self.vocab_size, self.length)

    @cached_property
    def _entries(self) -> dict[str, tuple[Entry, int]]:
        """The entry that a tensor of ours is read from (the first of several equal ones), and its place in it."""
        found: dict[str, tuple[Entry, int]] = {}
        for entry in self._all:
            for index, name in enumerate(entry.ours):
                if name in self.shapes:
                    found.setdefault(name, (entry, index))
        return found

    def _theirs(self, entry: Entry) -> Tensor:
        with self._open(entry.theirs) as file:
            return file.get_tensor(entry.theirs)

    def _open(self, theirs: str) -> Any:
        return safe_open(self._files[theirs], framework="pt")

    def _find_tensors(self) -> Iterator[tuple[str, Path]]:
        files = sorted(self.folder.glob("*.safetensors"))
        if not files:
            raise CheckpointError(f"{self.folder}: holds no .safetensors file (pickled weights are not opened)")
        for path in files:
            try:
                with safe_open(path, framework="pt") as file:
                    for name in file.keys():  # noqa: SIM118 (no mapping)
                        yield name, path
            except (SafetensorError, OSError) as error:
                reason = " ".join(str(error).split())
                raise CheckpointError(f"{path}: is no whole safetensors file: {reason}") from error

    def _check_headers(self) -> None:
        ignored = (*IGNORED, *self.architecture.ignored, *(["lm_head.weight"] if self.model.tie_embeddings else []))
        expected: dict[str, Shape] = {entry.theirs: entry.shape(self.shapes) for entry in self._all}
        for name in self._files.keys() - expected.keys():
            if not name.endswith(ignored):
                raise CheckpointError(f"{self.folder}: {name}: {self.architecture.class_name} has no such tensor here")
        for name, shape in expected.items():
            if name not in self._files:
                raise CheckpointError(f"{self.folder}: {name}: is missing")
            with self._open(name) as file:
                part = file.get_slice(name)
                if tuple(part.get_shape()) != shape or part.get_dtype() not in FLOATS:
                    found = f"{part.get_dtype()} {tuple(part.get_shape())}"
                    raise CheckpointError(f"{self.folder}: {name}: is {found}; {CONFIG} says floating point {shape}")


def _read_json(path: Path) -> dict[str, Any]:
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise CheckpointError(f"{path}: is no JSON: {error}") from error
    if not isinstance(values, dict):
        raise CheckpointError(f"{path}: must be an object")
    return values


def _whole_number(values: dict[str, Any], key: str) -> int:
    value = values.get(key)
    if not isinstance(value, int) or value < 1:
        raise CheckpointError(f"{key} = {value}: must be a whole number")
    return value
