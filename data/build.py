"""Build a dataset in an empty folder: the tokenizer, both splits, and last the manifest."""

from collections.abc import Generator, Iterable, Iterator
from contextlib import ExitStack, closing
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path

import numpy as np

from configs.errors import DataError
from data.corpus import Document
from data.indexed import SplitWriter, flush, token_dtype
from data.manifest import (
    MANIFEST,
    SPLITS,
    Manifest,
    SourceRecord,
    SplitName,
    fingerprint_of,
)
from data.piece_training import train_pieces
from data.progress import Report
from data.recipe import Recipe, SplitRule
from data.tokenizer import Tokenizer, copy_tokenizer, describe, kind_of, open_tokenizer
from data.workers import ordered

CHUNK_SIZE = 1 << 20


def build(folder: Path, recipe: Recipe, workers: int, report: Report) -> Manifest:
    """Fill `folder`; its files are the same for any number of workers.

    Raises: DataError if the corpus cannot be read or leaves a split without documents.
    """
    model = _provide_model(folder, recipe, report)
    tokenizer = open_tokenizer(model, recipe.given_eod)
    dtype = token_dtype(tokenizer.vocab_size)
    documents, sizes = [0] * len(recipe.inputs), [0] * len(recipe.inputs)
    report.start("Tokenising", recipe.bytes_to_read)
    with ExitStack() as stack:
        writers = {name: stack.enter_context(closing(SplitWriter(folder / name, dtype))) for name in SPLITS}
        tasks = _tasks(recipe, model, tokenizer)
        for chunk in stack.enter_context(closing(_encode_all(tasks, workers))):
            for document in chunk:
                documents[document.source] += 1
                sizes[document.source] += document.size
                writers[document.split].add(document.ids)
            report.advance_to(chunk[-1].consumed)
        report.finish()
        _refuse_empty(writers, recipe)
        splits = {name: writers[name].finish() for name in SPLITS}
    manifest = Manifest(
        tokenizer=describe(tokenizer, recipe.trained or kind_of(recipe.model), model),
        token_dtype=dtype,
        train=splits["train"],
        validation=splits["validation"],
        sources=[
            SourceRecord(input=name, documents=count, bytes=size)
            for name, count, size in zip(recipe.inputs, documents, sizes, strict=True)
        ],
        validation_fraction=recipe.split_rule.validation_fraction,
        seed=recipe.split_rule.seed,
        recipe=recipe.hash,
        fingerprint="",
    )
    return write_manifest(folder, manifest)


def _provide_model(folder: Path, recipe: Recipe, report: Report) -> Path | None:
    """Train the tokenizer or copy it into the folder; None for bytes."""
    if recipe.tokenizer == "byte":
        return None
    if recipe.model:
        model = copy_tokenizer(recipe.model, folder)
    else:
        model = folder / "tokenizer.model"
        report.start("Training the tokenizer", None)
        # In a process of its own: the trainer would not hear Ctrl-C.
        with closing(ordered(_train, [recipe], workers=1)) as results:
            model.write_bytes(next(results))
        report.finish()
    flush(model)
    return model


def _train(recipe: Recipe) -> bytes:
    assert recipe.trained
    rule = recipe.split_rule
    texts = (document.text for document in recipe.documents() if rule.split_of(document.text) == "train")
    return train_pieces(texts, kind=recipe.trained, vocab_size=recipe.vocab_size, seed=rule.seed)


@dataclass(frozen=True)
class _Task:
    """A chunk of the corpus, and all that a worker needs to tokenise it."""

    documents: list[Document]
    model: Path | None
    eod: int
    tokenizer_hash: str
    split_rule: SplitRule


@dataclass(frozen=True)
class _Encoded:
    """A tokenised document; `source`, `size` and `consumed` as in `Document`, `ids` with the end of the document."""

    source: int
    size: int
    consumed: int
    split: SplitName
    ids: np.ndarray


def _tasks(recipe: Recipe, model: Path | None, tokenizer: Tokenizer) -> Iterator[_Task]:
    """The corpus in chunks of whole documents."""
    task = partial(_Task, model=model, eod=tokenizer.eod, tokenizer_hash=tokenizer.hash, split_rule=recipe.split_rule)
    chunk: list[Document] = []
    size = 0
    for document in recipe.documents():
        chunk.append(document)
        size += document.size
        if size >= CHUNK_SIZE:
            yield task(chunk)
            chunk, size = [], 0
    if chunk:
        yield task(chunk)


def _encode_all(tasks: Iterable[_Task], workers: int) -> Generator[list[_Encoded], None, None]:
    if workers == 1:
        yield from map(_encode, tasks)
    else:
        yield from ordered(_encode, tasks, workers)


def _encode(task: _Task) -> list[_Encoded]:
    tokenizer = _open_once(task.model, task.eod, task.tokenizer_hash)
    return [
        _Encoded(
            document.source,
            document.size,
            document.consumed,
            task.split_rule.split_of(document.text),
            np.append(tokenizer.encode(document.text), np.int32(tokenizer.eod)),
        )
        for document in task.documents
    ]


@lru_cache(maxsize=1)
def _open_once(model: Path | None, eod: int, tokenizer_hash: str) -> Tokenizer:
    tokenizer = open_tokenizer(model, eod)
    assert tokenizer.hash == tokenizer_hash
    return tokenizer


def _refuse_empty(writers: dict[SplitName, SplitWriter], recipe: Recipe) -> None:
    inputs, total = ", ".join(recipe.inputs), sum(writer.documents for writer in writers.values())
    if total == 0:
        limit = "" if recipe.max_bytes is None else f" whose text fits in max_bytes = {recipe.max_bytes}"
        raise DataError(f"{inputs}: no text: not one document{limit}")
    for name, writer in writers.items():
        if writer.documents == 0:
            raise DataError(
                f"{inputs}: {total} documents leave the {name} split empty: each split needs one: give more documents "
                f"(files or .jsonl lines), or change validation_fraction = {recipe.split_rule.validation_fraction:g}"
            )


def write_manifest(folder: Path, manifest: Manifest) -> Manifest:
    """Give the manifest its fingerprint and put it into the folder."""
    fingerprint = fingerprint_of(manifest.model_dump(mode="json"))
    manifest = manifest.model_copy(update={"fingerprint": fingerprint})
    path = folder / MANIFEST
    path.write_text(manifest.model_dump_json(indent=2) + "\n", encoding="utf-8")
    flush(path)
    flush(folder)
    return manifest
