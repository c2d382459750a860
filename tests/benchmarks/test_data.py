"""The sparse dataset that the loader's benchmark opens is one that megatron-core reads as well."""

from pathlib import Path

import pytest

import benchmarks.data.sparse
import data.dataset
from benchmarks.data.sparse import EOD, make_sparse
from data.dataset import Split


def test_a_sparse_dataset_is_a_dataset(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from megatron.core.datasets.indexed_dataset import IndexedDataset

    for module in (data.dataset, benchmarks.data.sparse):
        monkeypatch.setattr(module, "HASHED_SIZE", 1_500_000)  # so that a small one passes for a large one
    documents = make_sparse(tmp_path / "sparse", 2_000_000)
    split = Split(tmp_path / "sparse", "train")
    assert split.documents == documents
    assert split.read(split.tokens - 3, 3).tolist() == [EOD] * 3
    theirs = IndexedDataset(str(tmp_path / "sparse" / "train"))
    first, starts = split.documents_in(0, split.tokens)
    assert (first, len(starts)) == (0, documents)
    assert [2 * start for start in starts] == theirs.index.sequence_pointers.tolist()
    assert int(theirs.sequence_lengths.sum()) == split.tokens
