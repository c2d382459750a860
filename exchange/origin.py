"""Where a checkpoint came from: its run's folder, the data it was trained on, and their tokenizer."""

from pathlib import Path

from configs.errors import ConfigError, DataError
from configs.schema import DataSource
from data.manifest import Manifest, read_manifest
from data.samples import Samples
from data.tokenizer import Tokenizer, load, open_tokenizer
from exchange.plain import OUR_CONFIG, PlainWeights
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
    """`named`, a tokenizer's file, or the tokenizer of the run's data; that of exported weights lies beside them.

    Raises: ConfigError, DataError: the data are gone or prepared anew, or the tokenizer is of another size.
    """
    if named is not None:
        tokenizer = open_tokenizer(None if named == Path("byte") else named)
        _check_size(plain, tokenizer.vocab_size, f"command line: --tokenizer = {named}")
        return tokenizer
    if (plain.folder / OUR_CONFIG).exists():  # exported, its tokenizer with it
        return open_tokenizer(plain.folder)
    folder, manifest = datasets(plain)[0]
    if manifest is None:
        raise ConfigError(
            f"{folder}: the data of this run are not there; name their tokenizer with --tokenizer "
            "(a SentencePiece .model file, a tokenizer.json, or byte)"
        )
    _check_size(plain, manifest.tokenizer.vocab_size, str(folder))
    _check_same_data(plain)
    return load(folder)


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


def _check_same_data(plain: PlainWeights) -> None:
    training = plain.config.training
    places = zip(plain.config.data.sources, datasets(plain), strict=True)
    sources = [DataSource(path=place, weight=source.weight) for source, (place, _) in places]
    samples = Samples(sources, "train", training.sequence_length, training.seed)
    if samples.fingerprint != plain.manifest.data_fingerprint:
        raise ConfigError(
            f"{', '.join(str(source.path) for source in sources)}: not the data that {plain.folder} was trained on: "
            "prepared anew since; name their tokenizer with --tokenizer"
        )


def _check_size(plain: PlainWeights, vocab_size: int, where: str) -> None:
    rows = plain.shape("embedding.weight")[0]
    if count_rows(vocab_size, plain.config.model.vocab_multiple) != rows:
        raise ConfigError(
            f"{where}: a tokenizer of {vocab_size} tokens is not this model's, whose table has {rows} rows"
        )
