"""A Hugging Face checkpoint on disk, read as tensors of ours: nothing is downloaded, nothing it says is executed.

Shapes: O out-features, I in-features.
"""

import json
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any, NoReturn

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from configs.describe import shown
from configs.errors import CheckpointError
from configs.schema import ModelConfig
from formats.architectures.choice import architecture_of
from formats.architectures.ours import Shape, parameter_shapes
from formats.architectures.tensors import SAME, Entry

CONFIG, TOKENIZER = "config.json", "tokenizer.json"
WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
"""All tensors, or which file holds which. As for transformers, the former goes before the latter."""
TIED_HEAD = "lm_head.weight"
"""What some save although it is the embedding."""
FLOATS = ("F64", "F32", "F16", "BF16")
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
            if values.get("quantization_config") is not None:
                raise CheckpointError("quantization_config: quantised weights cannot be read")
            self.architecture = architecture_of(values)
            values = self.architecture.without_aliases(values)
        except CheckpointError as error:
            raise CheckpointError(f"{folder / CONFIG}: {error}") from None
        self._files = dict(self._find_tensors())
        try:
            self._check_layers(values)
            self.model = self.architecture.model(values, base)
            self.vocab_size = _whole_number(values, "vocab_size")
            self.length = _whole_number(values, self.architecture.length_key)
        except CheckpointError as error:
            raise CheckpointError(f"{folder / CONFIG}: {error}") from None
        self.shapes = parameter_shapes(self.model, self.vocab_size, self.length)
        self._check_headers()

    def read(self, name: str, place: tuple[slice, ...] = ()) -> Tensor:
        """A part of one of our tensors, in fp32; `place`: where, default the whole.

        Only the part is read, unless theirs is laid out otherwise; memory holds one of theirs.

        Raises: CheckpointError: numbers of it are not finite in fp32.
        """
        entry, index = self._entries[name]
        if entry.form is SAME:
            with self._open(entry.theirs) as file:
                found = file.get_slice(entry.theirs)
                part = found[place or tuple(slice(None) for _ in found.get_shape())].float()
        else:
            whole = self._theirs(entry.theirs)
            part = entry.form.unpack(whole, entry.shapes(self.shapes))[index][place or ...].contiguous()
        wrong = part.numel() - int(part.isfinite().sum())
        if wrong:
            raise CheckpointError(f"{self.folder}: {entry.theirs}: {wrong} of {part.numel()} numbers are not finite")
        return part

    def check_numbers(self) -> None:
        """Read what their architecture has and ours has not: biases must be zero, copies of one scale or of a tied
        head equal.

        Raises: CheckpointError.
        """
        if self.model.tie_embeddings and TIED_HEAD in self._files:
            table = self._entries["embedding.weight"][0].theirs
            if not torch.equal(self._theirs(TIED_HEAD), self._theirs(table)):
                raise CheckpointError(
                    f"{self.folder}: {TIED_HEAD} differs from {table}, and {CONFIG} means tie_word_embeddings = true"
                )
        for entry in self._all:
            absent = [name for name in entry.ours if name not in self.shapes]
            if absent and self._theirs(entry.theirs).any():
                raise CheckpointError(
                    f"{self.folder}: {entry.theirs} is not zero, and with model.bias = {str(self.model.bias).lower()} "
                    "there is no such bias"
                )
            if not absent and self._entries[entry.ours[0]][0] != entry:
                first = self._entries[entry.ours[0]][0]
                if not torch.equal(self._theirs(entry.theirs), self._theirs(first.theirs)):
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

    def _theirs(self, name: str) -> Tensor:
        with self._open(name) as file:
            return file.get_tensor(name).float()

    def _open(self, theirs: str) -> Any:
        return safe_open(self._files[theirs], framework="pt")

    def _find_tensors(self) -> Iterator[tuple[str, Path]]:
        """Tensors and the files that are to be read for them; what else lies in the folder is not looked at."""
        if (self.folder / WEIGHTS).exists():
            yield from ((name, self.folder / WEIGHTS) for name in _names_in(self.folder / WEIGHTS))
            return
        index = self.folder / INDEX
        if not index.exists():
            raise CheckpointError(f"{self.folder}: holds no {WEIGHTS} or {INDEX} (pickled weights are not opened)")
        shards: dict[str, set[str]] = {}
        for name, shard in _weight_map(index).items():
            shards.setdefault(shard, set()).add(name)
        missing = [shard for shard in sorted(shards) if not (self.folder / shard).exists()]
        if missing:
            raise CheckpointError(f"{index}: {missing[0]}: no such file")
        for shard, names in sorted(shards.items()):
            different = names ^ set(_names_in(self.folder / shard))
            for name in sorted(different):
                how = "holds no" if name in names else "is not said to hold"
                raise CheckpointError(f"{index}: {shard} {how} {name}")
            yield from ((name, self.folder / shard) for name in names)

    def _check_layers(self, config: dict[str, Any]) -> None:
        """Raise CheckpointError if there are fewer tensors than layers, before anything is made for each layer."""
        key = self.architecture.layers_key()
        layers = config.get(key)
        if isinstance(layers, int) and layers > len(self._files):
            raise CheckpointError(f"{key} = {shown(layers)}: there are only {len(self._files)} tensors")

    def _check_headers(self) -> None:
        # The width first: there may be a tensor for each head, and no more heads than columns.
        table = next(self.architecture.tensors(self.model))
        self._check_header(table.theirs, table.shape(self.shapes))
        expected: dict[str, Shape] = {entry.theirs: entry.shape(self.shapes) for entry in self._all}
        if self.model.tie_embeddings and TIED_HEAD in self._files:
            expected[TIED_HEAD] = self.shapes["embedding.weight"]
        for name in self._files.keys() - expected.keys():
            if not name.endswith((*IGNORED, *self.architecture.ignored)):
                raise CheckpointError(f"{self.folder}: {name}: {self.architecture.class_name} has no such tensor here")
        for name, shape in expected.items():
            self._check_header(name, shape)

    def _check_header(self, name: str, shape: Shape) -> None:
        if name not in self._files:
            raise CheckpointError(f"{self.folder}: {name}: is missing")
        with self._open(name) as file:
            part = file.get_slice(name)
            if tuple(part.get_shape()) != shape or part.get_dtype() not in FLOATS:
                found = f"{part.get_dtype()} {tuple(part.get_shape())}"
                raise CheckpointError(f"{self.folder}: {name}: is {found}; {CONFIG} says floating point {shape}")


def _names_in(path: Path) -> list[str]:
    try:
        with safe_open(path, framework="pt") as file:
            return list(file.keys())
    except (SafetensorError, OSError) as error:
        reason = " ".join(str(error).split())
        raise CheckpointError(f"{path}: is no whole safetensors file: {reason}") from error


def _weight_map(index: Path) -> dict[str, str]:
    """The name of the file beside `index` that holds a tensor."""
    found = _read_json(index).get("weight_map")
    if not isinstance(found, dict) or not found:
        raise CheckpointError(f"{index}: weight_map: must name tensors and their files")
    for name, shard in found.items():
        if not isinstance(shard, str) or Path(shard).name != shard:
            raise CheckpointError(f"{index}: weight_map.{name} = {shown(shard)}: must be a file in the same folder")
    return found


def _no_number(text: str) -> NoReturn:
    raise ValueError(f"{text} is no number")


def _read_json(path: Path) -> dict[str, Any]:
    try:
        values = json.loads(path.read_text(encoding="utf-8"), parse_constant=_no_number)
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: is no JSON: {error}") from error
    if not isinstance(values, dict):
        raise CheckpointError(f"{path}: must be an object")
    return values


def _whole_number(values: dict[str, Any], key: str) -> int:
    value = values.get(key)
    if type(value) is not int or value < 1:
        raise CheckpointError(f"{key} = {shown(value)}: must be a whole number")
    return value
