"""How many continuations have room beside the model: asked before anything is read, since the system would kill us."""

import math

import psutil
import torch

from configs.errors import ConfigError
from configs.schema import ModelConfig
from exchange.plain import PlainWeights
from inference.load import Where

GIB = 1 << 30
OWN_BYTES = 16 << 10
"""Of a continuation's random generator and its objects."""
TOKEN_BYTES = 64
"""Of a token as text and as a number of Python's, twice."""
LOGIT_BYTES = 32
"""Of a token of the vocabulary while one is drawn: logits, probabilities, their order."""


def require_room(weights: PlainWeights, where: Where, vocab_size: int, *, samples: int, length: int) -> None:
    """Raises: ConfigError if `samples` texts of `length` tokens, prompt included, do not fit into the free memory."""
    model = weights.config.model
    free = _free_memory(where.device)
    fixed = where.dtype.itemsize * sum(math.prod(weights.shape(name)) for name in weights.names)
    fixed += 8 * model.layers * length * model.head_size  # sines and cosines in fp32
    each = bytes_of_continuation(model, where.dtype, vocab_size, length)
    most = (free - fixed) // each
    if most < 1:
        raise ConfigError(
            f"command line: --max-tokens: the model and one text of {length} tokens, prompt included, "
            f"take {(fixed + each) / GIB:.1f} GiB of memory: {free / GIB:.1f} are free"
        )
    if samples > most:
        raise ConfigError(
            f"command line: --samples = {samples}: at most {most} of {length} tokens, prompt included, "
            f"fit into the {free / GIB:.1f} GiB of memory that are free"
        )


def bytes_of_continuation(model: ModelConfig, dtype: torch.dtype, vocab_size: int, length: int) -> int:
    """Keys and values of its tokens in every layer, and what it takes besides; about."""
    cached = 2 * model.layers * model.key_value_heads * model.head_size * dtype.itemsize
    return OWN_BYTES + length * (cached + TOKEN_BYTES) + vocab_size * LOGIT_BYTES


def _free_memory(device: torch.device) -> int:
    return torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else psutil.virtual_memory().available
