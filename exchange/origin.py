"""Where a checkpoint came from: its run's folder, the data it was trained on, and their tokenizer."""

from pathlib import Path

from configs.errors import ConfigError, DataError
from configs.schema import DataSource
from data.manifest import Manifest, read_manifest
from data.samples import Samples
from data.tokenizer import Tokenizer, load, open_tokenizer
from exchange.plain import OUR_CONFIG, UNCHECKED, PlainWeights
from parallel.embedding import count_rows
from training.checkpoint import store


def run_folder(plain: PlainWeights) -> Path | None:
    """The folder of the run that wrote a checkpoint; None for a checkpoint that was moved out of it."""
    folder = plain.folder.resolve()
    return folder.parents[1] if folder.parent.name == store.FOLDER else None


def datasets(plain: PlainWeights) -> list[tuple[Path, Manifest | None]]:
    """The run's prepared datasets, where they are now, and their manifests, None of those that are gone."""
    found: list[tuple[Path, Manifest | None]] = []
    for source in plain.config.data.sources:
        places = _places(plain, source.path)
        manifests = [(place, _manifest(place)) for place in places]
        found.append(next((pair for pair in manifests if pair[1] is not None), (source.path, None)))
    return found


def tokenizer_of(plain: PlainWeights, named: Path | None) -> Tokenizer:
    """The tokenizer that lies beside exported weights, or that of the run's data.

    `named`, a tokenizer's file or `byte`, must be that one, and takes its place where the data are gone: only its size
    can be held against the checkpoint then, and `unchecked` says so.

    Raises: ConfigError, DataError: the data are gone or prepared anew, or the tokenizer is another.
    """
    if named is None:
        return _own_tokenizer(plain)
    tokenizer, where = open_tokenizer(None if named == Path("byte") else named), f"command line: --tokenizer = {named}"
    _check_size(plain, tokenizer.vocab_size, where)
    is_known = is_exported(plain) or why_no_data(plain) is None
    if is_known and tokenizer.hash != _own_tokenizer(plain).hash:
        origin = plain.folder if is_exported(plain) else datasets(plain)[0][0]
        raise ConfigError(f"{where}: is not the tokenizer of {plain.folder}, which lies in {origin}: leave it out")
    return tokenizer


def unchecked(plain: PlainWeights, named: Path | None) -> str | None:
    """Why nothing but its size tells whether the tokenizer is the model's, for users; None if more does.

    Of exported weights: why nothing did when they were exported.
    """
    if is_exported(plain):
        return plain.manifest.journal[UNCHECKED]
    why = None if named is None else why_no_data(plain)
    if why is None:
        return None
    line = f"--tokenizer = {named}: only its size could be checked: {why}"
    return line.encode(errors="replace").decode()  # names of files may be no Unicode, which a manifest must be


def is_exported(plain: PlainWeights) -> bool:
    """Whether these are plain weights that were exported: their tokenizer lies beside them."""
    return (plain.folder / OUR_CONFIG).exists()


def why_no_data(plain: PlainWeights) -> str | None:
    """Why the run's data cannot be looked at; None if they are there as the model was trained on them."""
    training, places = plain.config.training, datasets(plain)
    gone = [str(place) for place, manifest in places if manifest is None]
    if gone:
        return f"{', '.join(gone)}: the data of this run are not there"
    sources = [
        DataSource(path=place, weight=source.weight)
        for source, (place, _) in zip(plain.config.data.sources, places, strict=True)
    ]
    try:
        samples = Samples(sources, "train", training.sequence_length, training.seed)
    except DataError as error:
        return str(error)
    if samples.fingerprint != plain.manifest.data_fingerprint:
        return (
            f"{', '.join(str(source.path) for source in sources)}: not the data that {plain.folder} was trained on: "
            "prepared anew since"
        )
    return None


def require_data(plain: PlainWeights) -> None:
    """Raises: ConfigError unless the run's data are there as the model was trained on them."""
    why = why_no_data(plain)
    if why is not None:
        raise ConfigError(why)


def _own_tokenizer(plain: PlainWeights) -> Tokenizer:
    if is_exported(plain):
        return open_tokenizer(plain.folder)
    why = why_no_data(plain)
    if why is not None:
        raise ConfigError(
            f"{why}; name their tokenizer with --tokenizer (a SentencePiece .model file, a tokenizer.json, or byte)"
        )
    return load(datasets(plain)[0][0])


def _places(plain: PlainWeights, path: Path) -> list[Path]:
    """A configured path may be relative to the folder that the run was started from: run.dir was, too."""
    places = [path]
    run = run_folder(plain)
    if run is not None and not path.is_absolute() and not plain.config.run.dir.is_absolute():
        below = plain.config.run_dir.parts
        if run.parts[-len(below) :] == below:
            places.append(Path(*run.parts[: -len(below)]) / path)
    return places


def _manifest(folder: Path) -> Manifest | None:
    try:
        return read_manifest(folder)
    except DataError:
        return None


def _check_size(plain: PlainWeights, vocab_size: int, where: str) -> None:
    rows = plain.shape("embedding.weight")[0]
    if count_rows(vocab_size, plain.config.model.vocab_multiple) != rows:
        raise ConfigError(
            f"{where}: a tokenizer of {vocab_size} tokens is not this model's, whose table has {rows} rows"
        )
