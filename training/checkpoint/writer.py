"""A rank's tensors to one safetensors file, in one pass: each byte is read once, written and hashed.

torch's HuggingFaceStorageWriter writes the same format, and its reader reads this one, but it builds the whole file in
memory. Here the header is computed from the plan, so that every offset is known before the first tensor is touched;
then tensors go out in blocks. A block is hashed in a second thread while this one hands it to the operating system,
which is told to start writing it at once: the final fsync finds little left to do.
"""

import ctypes
import errno
import hashlib
import json
import os
import shutil
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from functools import cache
from io import FileIO
from pathlib import Path
from queue import Queue
from threading import Thread
from typing import Any

import torch
from torch import Tensor
from torch.distributed.checkpoint import StorageWriter
from torch.distributed.checkpoint.metadata import Metadata
from torch.distributed.checkpoint.planner import SavePlan, SavePlanner, WriteItem
from torch.distributed.checkpoint.storage import WriteResult

from training.checkpoint.manifest import FileRecord

BLOCK = 8 << 20
"""Bytes written and hashed at a time, and copied from a GPU at a time."""

_AHEAD = 4
"""Blocks written whose hash is still to come: bounds the host memory that blocks of a GPU's tensors take."""

_DTYPES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
"""How safetensors calls them."""


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
        _require_space(self._folder, sum(_nbytes(item) for plan in plans for item in plan.items))
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


def write_file(path: Path, header: bytes, tensors: Iterable[Tensor]) -> FileRecord:
    """Write `header` and the bytes of `tensors` to a new file, bring it to the disk and say what it is. Raises OSError.

    Tensors may be on any device and of any strides; they are taken one at a time.
    """
    checksum, size, started = _Checksum(), 0, 0
    with path.open("xb", buffering=0) as file, checksum:
        for block in _blocks(header, tensors):
            checksum.update(block)
            _write(file, block)
            size += len(block)
            if size - started >= BLOCK:
                _start_writeback(file, started, size - started)
                started = size
        os.fsync(file.fileno())
    return FileRecord(size=size, sha256=checksum.hexdigest)


@dataclass(frozen=True)
class _Written:
    name: str
    record: FileRecord


class _Checksum:
    """SHA-256 in a thread of its own: hashlib lets others run meanwhile. Complete when the `with` block is left."""

    def __init__(self) -> None:
        self._digest = hashlib.sha256()
        self._blocks: Queue[memoryview | None] = Queue(_AHEAD)
        # No executor: an interpreter that ends while a save is under way takes no more work for those.
        self._thread = Thread(target=self._run, name="checksum")

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(self, *_: object) -> None:
        self._blocks.put(None)
        self._thread.join()

    def update(self, block: memoryview) -> None:
        """Hash these bytes next; they must not change until that is done."""
        self._blocks.put(block)

    @property
    def hexdigest(self) -> str:
        return self._digest.hexdigest()

    def _run(self) -> None:
        while (block := self._blocks.get()) is not None:
            self._digest.update(block)


def _require_space(folder: Path, size: int) -> None:
    disk = shutil.disk_usage(folder)
    if disk.total and size > disk.free:  # some network file systems tell nothing: all zeros
        raise OSError(errno.ENOSPC, f"{os.strerror(errno.ENOSPC)}: {size} bytes to write, {disk.free} free")


def _layout(items: list[WriteItem]) -> tuple[bytes, list[WriteItem]]:
    """The file's header, and the items in the order of their bytes: wide dtypes first, which aligns all, then by name.

    Format: https://huggingface.co/docs/safetensors: length of the header (8 bytes, little-endian), a JSON object, the
    tensors without gaps. `DCP_SHARDING_INFO` is where HuggingFaceStorageReader looks up which part of a tensor it is.
    """
    items = sorted(items, key=lambda item: (-_data(item).properties.dtype.itemsize, item.index.fqn))
    parts = {item.index.fqn: {"saved_offsets": list(_data(item).chunk.offsets)} for item in items}
    assert len(parts) == len(items), "a file holds one part of each tensor: its name is the key"
    metadata = {"DCP_SHARDING_INFO": json.dumps(parts), "DCP_VERSION": "1.0", "format": "pt"}
    header: dict[str, Any] = {"__metadata__": metadata}
    end = 0
    for item in items:
        start, end = end, end + _nbytes(item)
        header[item.index.fqn] = {
            "dtype": _DTYPES[_data(item).properties.dtype],
            "shape": list(_data(item).chunk.sizes),
            "data_offsets": [start, end],
        }
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text, items


def _data(item: WriteItem) -> Any:
    assert item.tensor_data is not None, f"{item.index.fqn} is no tensor"
    return item.tensor_data


def _tensor(planner: SavePlanner, item: WriteItem) -> Tensor:
    tensor = planner.resolve_data(item)
    assert isinstance(tensor, Tensor) and tensor.shape == _data(item).chunk.sizes, f"{item.index.fqn} is not as planned"
    return tensor


def _nbytes(item: WriteItem) -> int:
    return _data(item).chunk.sizes.numel() * _data(item).properties.dtype.itemsize


def _blocks(header: bytes, tensors: Iterable[Tensor]) -> Iterator[memoryview]:
    """The file's bytes in order. Small tensors share a block: a write and a hand-over for each would cost more."""
    small = bytearray(header)
    for tensor in tensors:
        flat = tensor.detach().reshape(-1).view(torch.uint8)  # bytes; a copy of this one tensor only if it has gaps
        for part in flat.split(BLOCK) if flat.numel() else ():
            block = memoryview(part.cpu().numpy())
            if len(block) < BLOCK // 64:
                small += block
                block = memoryview(b"")
            if small and (block or len(small) >= BLOCK):
                yield memoryview(small)
                small = bytearray()
            if block:
                yield block
    if small:
        yield memoryview(small)


def _write(file: FileIO, block: memoryview) -> None:
    while block:
        block = block[file.write(block) :]


def _start_writeback(file: FileIO, offset: int, length: int) -> None:
    """Have the disk begin with these bytes. No more than a hint: errors are those that fsync reports at the end."""
    if _sync_file_range() is not None:
        _sync_file_range()(file.fileno(), offset, length, 2)  # SYNC_FILE_RANGE_WRITE: start, do not wait


@cache
def _sync_file_range() -> Any:
    """The system call of that name, None where there is none: it is Linux's, and missing from Python's os module."""
    function = getattr(ctypes.CDLL(None), "sync_file_range", None)
    if function is not None:
        function.argtypes = [ctypes.c_int, ctypes.c_int64, ctypes.c_int64, ctypes.c_uint]
    return function
