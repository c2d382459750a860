"""A sample's documents and text, against the documents read one by one."""

import numpy as np
import pytest

from configs.schema import DataSource
from data.dataset import Split
from data.documents import Reader, locate, sample_table
from data.samples import Samples
from data.tokenizer import load


def make(folders, length: int) -> Samples:
    return Samples([DataSource(path=folder) for folder in folders], "train", length, seed=3)


@pytest.mark.parametrize("length", [7, 64, 1000])
def test_pieces_put_together_are_the_sample(prepared, make_dataset, length):
    from megatron.core.datasets.indexed_dataset import IndexedDataset

    folders = [prepared, make_dataset(seed=9)]
    samples = make(folders, length)
    indexed = [IndexedDataset(str(folder / "train")) for folder in folders]  # megatron-core's reader
    for k in range(60):
        at = locate(samples, k)
        assert at.folder == folders[at.source]
        parts = [indexed[at.source].get(p.document, offset=p.start, length=p.tokens) for p in at.pieces]
        assert np.array_equal(np.concatenate(parts), samples[k])
        assert all(piece.tokens > 0 for piece in at.pieces)


def test_the_text_of_a_sample(prepared):
    samples = make([prepared], 50)
    assert Reader(samples).text(4) == load(prepared).decode(samples[4])


def test_the_table_of_a_batch(prepared):
    samples = make([prepared], 50)
    ids = np.arange(6).reshape(2, 3)
    table = sample_table(samples, ids)
    at = locate(samples, 4)
    assert table["offset"].shape == (2, 3)
    assert table["offset"][1, 1] == at.offset and table["window"][1, 1] == at.window
    assert table["first_document"][1, 1] == at.pieces[0].document
    assert table["last_document"][1, 1] == at.pieces[-1].document
    assert table["document_offset"][1, 1] == at.pieces[0].start


def test_documents_outside_the_split_are_refused(prepared):
    split = Split(prepared, "train")
    for start, count in ((-1, 2), (0, 0), (split.tokens, 1), (split.tokens - 1, 2)):
        with pytest.raises(IndexError):
            split.documents_in(start, count)
