"""Numbers that do not fit, disks that are full, and tokenizers that are not the model's."""

import shutil
from pathlib import Path

import pytest
import torch

from configs.errors import CheckpointError, ConfigError
from exchange.origin import tokenizer_of
from exchange.shards import Planned, write_shards
from tests.exchange.models import random_weights


def planned(value: float) -> Planned:
    return Planned("w", (2, 3), lambda: torch.full((2, 3), value))


def test_a_number_beyond_fp16_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError) as error:
        write_shards(tmp_path, [planned(7e4)], torch.float16, 100)
    assert str(error.value) == "w: has numbers beyond fp16's 65504: take --dtype bf16 or fp32"


@pytest.mark.parametrize("value", [float("nan"), -float("inf")])
def test_numbers_that_are_not_finite_are_an_error(value: float, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError) as error:
        write_shards(tmp_path, [planned(1.0), planned(value)], torch.float32, 100)
    assert str(error.value) == (
        "w: 6 of 6 numbers are not finite (NaN or infinity): its weights are damaged, or the run had diverged: "
        "take another --step"
    )


def test_what_fits_is_written(tmp_path: Path) -> None:
    shards = write_shards(tmp_path, [planned(6e4)], torch.float16, 100)
    assert shards.bytes == 12 and list(shards.files) == ["model.safetensors"]


def test_a_full_disk_is_seen_before_anything_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    free = shutil.disk_usage(tmp_path)._replace(free=11)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: free)
    with pytest.raises(OSError, match="No space left on device: 12 bytes to write, 11 free"):
        write_shards(tmp_path, [planned(1.0)], torch.float16, 100)
    assert not list(tmp_path.iterdir())


def test_a_tokenizer_of_another_size() -> None:
    weights = random_weights(positions="rope")
    with pytest.raises(ConfigError) as error:
        tokenizer_of(weights, Path("byte"))  # type: ignore[arg-type]
    assert str(error.value) == (
        "command line: --tokenizer = byte: a tokenizer of 257 tokens is not this model's, whose table has 64 rows"
    )
