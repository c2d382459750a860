"""A rank's tensors to one safetensors file, in one pass.

torch's HuggingFaceStorageWriter writes the same format, and its reader reads this one, but it builds the whole file in
memory.
"""

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.distributed.checkpoint import StorageWriter
from torch.distributed.checkpoint.metadata import Metadata
from torch.distributed.checkpoint.planner import SavePlan, SavePlanner, WriteItem
from torch.distributed.checkpoint.storage import WriteResult

from training.checkpoint.manifest import FileRecord
from training.checkpoint.tensor_file import TensorPlan, encode_header, require_space, write_file


class ShardWriter(StorageWriter):
    """One file `shard-<rank + 1>-...` for each rank that has anything to write, on the disk when `dcp.save` returns.

    `files` then holds, on the coordinating rank, the size and checksum of every rank's file. The folder must exist, the
    files must not; syncing the folder is left to the caller. Two saves of equal tensors give equal bytes.
    Raises, through `dcp.save` and on every rank: CheckpointException if any rank could not write.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.files: dict[str, FileRecord] = {}

    def reset(self, checkpoint_id: str | os.PathLike[str] | None = None) -> None:
        """Nothing is kept between saves: there is one save a writer."""

    def set_up_storage_writer(self, is_coordinator: bool, *args: Any, **kwargs: Any) -> None:
        """Nothing to set up."""

    def prepare_local_plan(self, plan: SavePlan) -> SavePlan:
        """As planned."""
        return plan

    def prepare_global_plan(self, plans: list[SavePlan]) -> list[SavePlan]:
        """Give each rank the name of its file; the reader takes any, these are torch's.

        Raises, before any rank writes: OSError if the disk has no room for all of them. Filling it first would take
        from training the room for its own records.
        """
        require_space(self._folder, sum(_nbytes(item) for plan in plans for item in plan.items))
        names = [f"shard-{rank + 1:05d}-model-00001-of-00001.safetensors" for rank in range(len(plans))]
        return [replace(plan, storage_data=name) for plan, name in zip(plans, names, strict=True)]

    def write_data(self, plan: SavePlan, planner: SavePlanner) -> torch.futures.Future[list[WriteResult]]:
        """Write this rank's file; done when it returns. Raises OSError."""
        results = []
        if plan.items:
            header, items = _layout(plan.items)
            record = write_file(self._folder / plan.storage_data, header, (_tensor(planner, item) for item in items))
            written = _Written(plan.storage_data, record)
            results = [WriteResult(item.index, _nbytes(item), written) for item in items]
        future: torch.futures.Future[list[WriteResult]] = torch.futures.Future()
        future.set_result(results)
        return future

    def finish(self, metadata: Metadata, results: list[list[WriteResult]]) -> None:
        """On the coordinating rank, once all have written: what files there are."""
        written = {result.storage_data.name: result.storage_data.record for of_rank in results for result in of_rank}
        self.files = dict(sorted(written.items()))

    @classmethod
    def validate_checkpoint_id(cls, checkpoint_id: str | os.PathLike[str]) -> bool:
        """Any folder will do."""
        return True


@dataclass(frozen=True)
class _Written:
    name: str
    record: FileRecord


def sharding_metadata(offsets: Mapping[str, Sequence[int]]) -> dict[str, str]:
    """What a file's header says beside its tensors: where in the whole each of them begins.

    `DCP_SHARDING_INFO` is where HuggingFaceStorageReader looks it up.
    """
    parts = {name: {"saved_offsets": list(begin)} for name, begin in offsets.items()}
    return {"DCP_SHARDING_INFO": json.dumps(parts), "DCP_VERSION": "1.0", "format": "pt"}


def _layout(items: list[WriteItem]) -> tuple[bytes, list[WriteItem]]:
    """The header, and the items in the order of their bytes: wide dtypes first, which aligns all, then by name."""
    items = sorted(items, key=lambda item: (-_data(item).properties.dtype.itemsize, item.index.fqn))
    offsets = {item.index.fqn: _data(item).chunk.offsets for item in items}
    assert len(offsets) == len(items), "a file holds one part of each tensor: its name is the key"
    plans = [TensorPlan(item.index.fqn, _data(item).properties.dtype, tuple(_data(item).chunk.sizes)) for item in items]
    return encode_header(plans, sharding_metadata(offsets)), items


def _data(item: WriteItem) -> Any:
    assert item.tensor_data is not None, f"{item.index.fqn} is no tensor"
    return item.tensor_data


def _tensor(planner: SavePlanner, item: WriteItem) -> Tensor:
    tensor = planner.resolve_data(item)
    assert isinstance(tensor, Tensor) and tensor.shape == _data(item).chunk.sizes, f"{item.index.fqn} is not as planned"
    return tensor


def _nbytes(item: WriteItem) -> int:
    return _data(item).chunk.sizes.numel() * _data(item).properties.dtype.itemsize
