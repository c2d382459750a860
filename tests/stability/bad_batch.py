"""A prepared dataset of which one batch of a run is garbage."""

import json
import shutil
from pathlib import Path

import numpy as np

from configs.schema import Config
from data.indexed import hash_file
from data.manifest import MANIFEST, fingerprint_of
from data.samples import Samples


def plant(data: Path, out: Path, config: Config, batch: int) -> list[int]:
    """Copy the byte dataset `data` to `out` with the samples of a global batch made random; returns their ids."""
    shutil.copytree(data, out)
    training = config.training
    source = config.data.sources[0].model_copy(update={"path": data})
    samples = Samples([source], "train", training.sequence_length, training.seed)
    tokens = np.memmap(out / "train.bin", dtype=samples.split(0).manifest.token_dtype, mode="r+")
    ids = list(range(batch * training.global_batch_size, (batch + 1) * training.global_batch_size))
    rng = np.random.default_rng(0)
    for k in ids:
        offset = samples.locate(k)[2]
        window = tokens[offset : offset + training.sequence_length]
        window[:] = np.where(window == 256, window, rng.integers(128, 256, len(window)))
    tokens.flush()
    manifest = json.loads((out / MANIFEST).read_text())
    manifest["train"]["bin"]["sha256"] = hash_file(out / "train.bin")
    manifest["fingerprint"] = fingerprint_of(manifest)
    (out / MANIFEST).write_text(json.dumps(manifest))
    return ids
