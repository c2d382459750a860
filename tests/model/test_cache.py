"""Token by token with a cache: the logits of the whole sequence at once, in fp32.

Shapes: B batch, T sequence, V vocabulary.
"""

import pytest
import torch
from torch import Tensor

from configs.schema import ModelConfig
from model.cache import KeyValueCache, LayerCache
from model.decoder import Decoder
from parallel.linear import LinearSpec
from parallel.topology import TensorParallel
from tests.recipes import RECIPES, recipe

VOCAB, LENGTH = 61, 24
LLAMA = {"norm": "rmsnorm", "activation": "swiglu", "kv_heads": 2, "qk_norm": True}
MODELS = {
    "learned positions": {"positions": "learned"},
    "llama": LLAMA,
    "one key/value head, biases": {"kv_heads": 1, "bias": True},
    "post": {"norm_placement": "post", "positions": "learned", "kv_heads": 2},
    "peri, soft caps, grouped": {
        "norm_placement": "peri",
        "kv_heads": 2,
        "attention_softcap": 2.0,
        "logit_softcap": 3.0,
    },
    "reordered, tied, scaled": LLAMA
    | {"norm_placement": "reordered", "tie_embeddings": True, "embedding_scale": "sqrt_width"},
    "low rank": {"low_rank": {"targets": ["q", "k", "v"], "rank": 8}},
    "low rank per head, embedding norm": {
        "low_rank": {"targets": ["q", "k"], "per_head": True},
        "embedding_norm": True,
    },
}
MODELS |= {name: recipe(name).get("model", {}) for name in RECIPES}


def decoder(**model: object) -> Decoder:
    """Initial weights so large that attention tells positions apart."""
    base = {"layers": 3, "hidden_size": 32, "heads": 4, "init_std": 0.3}
    config = ModelConfig.model_validate({**base, **model, "reparam": {}})
    spec = LinearSpec(TensorParallel(), seed=0, bias=config.bias)
    return Decoder(config, spec, vocab_size=VOCAB, length=LENGTH, layers=range(config.layers)).requires_grad_(False)


def tokens(batch: int = 2) -> Tensor:
    return torch.randint(VOCAB, (batch, LENGTH), generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("name", MODELS)
def test_cached_logits_are_those_of_the_whole_sequence(name: str) -> None:
    model = decoder(**MODELS[name])
    tokens_BT = tokens()
    expected_BTV = model(tokens_BT)
    bound = 1e-5 * max(1.0, expected_BTV.abs().max().item())  # without norms logits are in the hundreds
    assert (expected_BTV[:, 1:] - expected_BTV[:, :-1]).abs().amax(-1).min() > 1e-2, "positions must differ"
    cache = KeyValueCache(3, LENGTH)
    for first, last in [(0, 9), *((step, step + 1) for step in range(9, LENGTH))]:
        logits_BV = model.next_logits(tokens_BT[:, first:last], cache)
        assert cache.length == last
        torch.testing.assert_close(logits_BV, expected_BTV[:, last - 1], rtol=0, atol=bound)


def test_copies_of_a_prompt_go_their_own_ways() -> None:
    model = decoder(**LLAMA)
    prompt_1T, ends_BT = tokens(1)[:, :10], tokens(3)[:, :4]
    cache = KeyValueCache(3, 14)
    model.next_logits(prompt_1T, cache)
    copies = cache.repeat(3)
    for step in range(4):
        logits_BV = model.next_logits(ends_BT[:, step : step + 1], copies)
    expected_BTV = model(torch.cat([prompt_1T.expand(3, -1), ends_BT], 1))
    torch.testing.assert_close(logits_BV, expected_BTV[:, -1], rtol=1e-5, atol=1e-5)
    assert cache.length == 10


def test_a_full_cache_and_unmasked_tokens_are_refused() -> None:
    cache = LayerCache(3)
    heads = torch.zeros(1, 1, 2, 4)
    cache.append(heads, heads)
    with pytest.raises(AssertionError, match="no mask"):
        cache.append(heads, heads)
    cache.append(heads[:, :, :1], heads[:, :, :1])
    with pytest.raises(AssertionError, match="cache of 3 tokens is full"):
        cache.append(heads[:, :, :1], heads[:, :, :1])
