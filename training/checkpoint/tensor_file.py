"""A safetensors file in one pass: each byte is read once, written and hashed.

The header is computed from names, dtypes and shapes, so that every offset is known before the first tensor is touched;
then tensors go out in blocks. A block is hashed in a second thread while this one hands it to the operating system,
which is told to start writing it at once: the final fsync finds little left to do.
"""

import ctypes
import errno
import hashlib
import json
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from io import FileIO
from pathlib import Path
from queue import Queue
from threading import Thread
from typing import Any

import torch
from torch import Tensor

from training.checkpoint.manifest import FileRecord

BLOCK = 8 << 20
"""Bytes written and hashed at a time, and copied from a GPU at a time."""

_AHEAD = 4
"""Blocks written whose hash is still to come: bounds the host memory that blocks of a GPU's tensors take."""

DTYPES = {
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


@dataclass(frozen=True)
class TensorPlan:
    """A tensor of a file, before there is one."""

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        return torch.Size(self.shape).numel() * self.dtype.itemsize


def encode_header(plans: Iterable[TensorPlan], metadata: Mapping[str, str]) -> bytes:
    """The start of a file that holds these tensors without gaps, in this order.

    Format: https://huggingface.co/docs/safetensors: length of the header (8 bytes, little-endian), a JSON object, the
    tensors. Tensors are aligned if wide dtypes come first.
    """
    header: dict[str, Any] = {"__metadata__": dict(metadata)}
    end = 0
    for plan in plans:
        start, end = end, end + plan.nbytes
        header[plan.name] = {"dtype": DTYPES[plan.dtype], "shape": list(plan.shape), "data_offsets": [start, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


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


def require_space(folder: Path, size: int) -> None:
    """Raise OSError if the disk has no room for `size` bytes."""
    disk = shutil.disk_usage(folder)
    if disk.total and size > disk.free:  # some network file systems tell nothing: all zeros
        raise OSError(errno.ENOSPC, f"{os.strerror(errno.ENOSPC)}: {size} bytes to write, {disk.free} free")


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
