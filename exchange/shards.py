"""A model as safetensors files of a bounded size, one tensor in memory at a time."""

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from configs.errors import CheckpointError
from training.checkpoint.manifest import FileRecord
from training.checkpoint.tensor_file import TensorPlan, encode_header, require_space, write_file

INDEX = "model.safetensors.index.json"


@dataclass(frozen=True)
class Planned:
    """A tensor of the model: its name and shape, and how to get it once its turn comes."""

    name: str
    shape: tuple[int, ...]
    read: Callable[[], Tensor]


@dataclass(frozen=True)
class Shards:
    """What was written."""

    bytes: int
    """Of all tensors."""
    files: dict[str, FileRecord]


def write_shards(folder: Path, tensors: Sequence[Planned], dtype: torch.dtype, max_bytes: int) -> Shards:
    """Write `tensors` in `dtype`, in their order, to files of at most `max_bytes`, or of one tensor that is larger.

    One file is called model.safetensors; more are numbered, and `model.safetensors.index.json` says which tensor is
    where. Raises: OSError; CheckpointError if a number is not finite or does not fit into `dtype`.
    """
    files = list(_files([(tensor, TensorPlan(tensor.name, dtype, tensor.shape)) for tensor in tensors], max_bytes))
    total = sum(plan.nbytes for file in files for _, plan in file)
    require_space(folder, total)
    where: dict[str, str] = {}
    records: dict[str, FileRecord] = {}
    for number, file in enumerate(files, start=1):
        name = "model.safetensors" if len(files) == 1 else f"model-{number:05d}-of-{len(files):05d}.safetensors"
        header = encode_header((plan for _, plan in file), {"format": "pt"})
        records[name] = write_file(folder / name, header, (_cast(tensor, dtype) for tensor, _ in file))
        where |= {tensor.name: name for tensor, _ in file}
    if len(files) > 1:
        index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(where.items()))}
        (folder / INDEX).write_text(json.dumps(index, indent=2) + "\n")
    return Shards(total, records)


def _files(plans: Sequence[tuple[Planned, TensorPlan]], max_bytes: int) -> Iterator[list[tuple[Planned, TensorPlan]]]:
    file: list[tuple[Planned, TensorPlan]] = []
    size = 0
    for planned, plan in plans:
        if file and size + plan.nbytes > max_bytes:
            yield file
            file, size = [], 0
        file.append((planned, plan))
        size += plan.nbytes
    yield file


def _cast(planned: Planned, dtype: torch.dtype) -> Tensor:
    whole = planned.read()
    assert tuple(whole.shape) == planned.shape, f"{planned.name} is not as planned"
    wrong = whole.numel() - int(whole.isfinite().sum())
    if wrong:
        raise CheckpointError(
            f"{planned.name}: {wrong:,} of {whole.numel():,} numbers are not finite (NaN or infinity): its "
            "weights are damaged, or the run had diverged: take another --step"
        )
    cast = whole.to(dtype)
    if dtype == torch.float16 and bool(cast.isinf().any()):
        raise CheckpointError(f"{planned.name}: has numbers beyond fp16's 65504: take --dtype bf16 or fp32")
    return cast
