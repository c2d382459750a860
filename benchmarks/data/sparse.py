"""A prepared dataset of any size that takes little room: tokens are a hole in the file, the index is a real one."""

import json
import os
from pathlib import Path

import numpy as np

from data.dataset import HASHED_SIZE
from data.indexed import hash_file
from data.manifest import MANIFEST, fingerprint_of

HEADER = 34
SHORTEST, LONGEST = 1000, 3000
"""Tokens of a document."""
EOD = 0
"""The end of a document is what holes are full of."""
VOCABULARY = 50257
VALIDATION = 1_000_000
"""Bytes of tokens in the validation split."""
TOKEN_BYTES = 2


def make_sparse(folder: Path, size: int) -> int:
    """Write a dataset with about `size` bytes of training tokens (uint16) into `folder`; how many documents they are.

    It is larger than what is hashed at start, and the manifest has no hashes of the training split.
    """
    assert size > HASHED_SIZE
    folder.mkdir(parents=True)
    records = {"train": _write(folder / "train", size // TOKEN_BYTES)}
    records["validation"] = _write(folder / "validation", VALIDATION // TOKEN_BYTES)
    for name in ("bin", "idx"):
        records["validation"][name]["sha256"] = hash_file(folder / f"validation.{name}")
    fields: dict = {
        "format_version": 1,
        "tokenizer": {"kind": "sentencepiece", "vocab_size": VOCABULARY, "eod": EOD, "hash": "none", "file": None},
        "token_dtype": "uint16",
        **records,
        "sources": [{"input": "holes", "documents": records["train"]["documents"], "bytes": size}],
        "validation_fraction": 0.01,
        "seed": 0,
        "recipe": "none",
    }
    fields["fingerprint"] = fingerprint_of(fields)
    (folder / MANIFEST).write_text(json.dumps(fields))
    return records["train"]["documents"]


def _write(prefix: Path, tokens: int) -> dict:
    """`<prefix>.bin` and `.idx` of one split, and its record in the manifest."""
    generator = np.random.default_rng(0)
    lengths = generator.integers(SHORTEST, LONGEST, size=2 * tokens // (SHORTEST + LONGEST), dtype=np.int32)
    total = int(lengths.sum(dtype=np.int64))
    documents = len(lengths)
    bin_path, idx_path = prefix.with_suffix(".bin"), prefix.with_suffix(".idx")
    with open(bin_path, "wb") as stream:
        stream.truncate(total * TOKEN_BYTES)
    ends = np.cumsum(lengths, dtype=np.int64) * TOKEN_BYTES
    with open(idx_path, "wb") as stream:
        header = (1).to_bytes(8, "little") + bytes([8])  # version, code of uint16
        stream.write(b"MMIDIDX\x00\x00" + header + documents.to_bytes(8, "little"))
        stream.write((documents + 1).to_bytes(8, "little"))
        assert stream.tell() == HEADER
        lengths.tofile(stream)
        np.concatenate([[0], ends[:-1]]).tofile(stream)
        np.arange(documents + 1, dtype=np.int64).tofile(stream)
        stream.flush()
        os.fsync(stream.fileno())
    return {
        "documents": documents,
        "tokens": total,
        "bin": {"size": bin_path.stat().st_size, "sha256": "unknown"},
        "idx": {"size": idx_path.stat().st_size, "sha256": "unknown"},
    }


def forget(folder: Path) -> None:
    """Drop the index from the page cache, so that the next to open it reads it from the disk."""
    for path in folder.glob("*.idx"):
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(descriptor)
