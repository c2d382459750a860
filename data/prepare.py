"""Prepare a dataset: tokenise a corpus into Megatron indexed datasets, all or nothing.

The folder holds `train.bin/.idx`, `validation.bin/.idx`, `manifest.json`, and `tokenizer.model` or `tokenizer.json`
unless the tokens are bytes. It is built beside its place (`.<name>.partial`) and renamed into it, so that what has its
name is complete.
"""

from collections.abc import Sequence
from pathlib import Path

from configs.errors import ConfigError
from data.build import build
from data.corpus import find
from data.place import Prepared, put_in_place
from data.recipe import Recipe, SplitRule
from data.workers import available_cores


def prepare(
    inputs: Sequence[str | Path],
    out: str | Path,
    *,
    tokenizer: str | Path = "byte",
    eod: str | None = None,
    vocab_size: int = 4096,
    validation_fraction: float = 0.1,
    max_bytes: int | None = None,
    workers: int | None = None,
    text_field: str = "text",
    seed: int = 0,
    force: bool = False,
    progress: bool = True,
) -> Prepared:
    """Tokenise `inputs` (see `data.corpus.find`) into the folder `out`; the same bytes for any number of workers.

    A folder that the same recipe made is checked and left as it is (`reused`). Any other is refused, or replaced with
    `force` if it is a prepared dataset. `tokenizer` is `byte`, `bpe` or `unigram` (trained on the training split, with
    `vocab_size` pieces), or the path of a SentencePiece model, of a Hugging Face tokenizer.json or of its folder (whose
    documents `eod` ends, or else the eos_token beside it). `max_bytes` takes the leading documents that fit;
    `workers` defaults to the available cores.

    Raises: ConfigError for a setting out of range; DataError for input that cannot be read, a split without documents,
    or a folder in the way.
    """
    if workers is not None and workers < 1:
        raise ConfigError(f"workers = {workers}: must be at least 1")
    names = tuple(map(str, inputs))
    if not names:
        raise ConfigError("inputs: must name at least one file, folder, glob, or stdlib")
    recipe = Recipe(
        inputs=names,
        files=tuple(find(names)),
        tokenizer=str(tokenizer),
        eod=eod,
        vocab_size=vocab_size,
        split_rule=SplitRule(validation_fraction, seed),
        max_bytes=max_bytes,
        text_field=text_field,
    )
    count = workers or available_cores()
    return put_in_place(
        out,
        recipe.hash,
        lambda folder, report: build(folder, recipe, count, report),
        force=force,
        progress=progress,
    )
