"""What continuations take, against what the decoder's cache holds; what is refused."""

import pytest
import torch

from configs.errors import ConfigError
from configs.schema import Config, ModelConfig
from exchange.plain import open_run
from inference.load import Where
from inference.room import LOGIT_BYTES, OWN_BYTES, TOKEN_BYTES, bytes_of_continuation, require_room
from model.cache import KeyValueCache
from tests.inference.conftest import learned_run
from tests.model.test_cache import LENGTH, VOCAB, decoder

__all__ = ["learned_run"]


@pytest.mark.parametrize("fields", [{}, {"kv_heads": 2}, {"low_rank": {"targets": ["q", "k"]}}], ids=str)
def test_the_cache_is_as_large_as_that(fields: dict) -> None:
    network, cache = decoder(**fields), KeyValueCache(3, LENGTH)
    network.next_logits(torch.zeros(1, 4, dtype=torch.long), cache)
    tensors = (value for layer in cache.layers for value in vars(layer).values() if isinstance(value, torch.Tensor))
    held = sum(tensor.nbytes for tensor in tensors)
    model = ModelConfig.model_validate({"layers": 3, "hidden_size": 32, "heads": 4} | fields)
    besides = OWN_BYTES + LENGTH * TOKEN_BYTES + VOCAB * LOGIT_BYTES
    assert bytes_of_continuation(model, torch.float32, VOCAB, LENGTH) == held + besides


def test_what_has_no_room(learned_run: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    weights, where = open_run(learned_run.run_dir), Where(torch.device("cpu"), torch.float32)
    monkeypatch.setattr("inference.room._free_memory", lambda device: 10_000_000)
    require_room(weights, where, 257, samples=50, length=64)
    with pytest.raises(
        ConfigError, match=r"--samples = 1000: at most \d+ of 64 tokens, prompt included, fit into the "
    ):
        require_room(weights, where, 257, samples=1000, length=64)
    with pytest.raises(ConfigError, match=r"--max-tokens: the model and one text of 100000 tokens, prompt included, "):
        require_room(weights, where, 257, samples=1, length=100_000)
