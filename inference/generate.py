"""Text that continues a prompt, token by token.

Shapes: B continuations of one prompt, T its tokens, V tokens of the vocabulary.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from configs.errors import CheckpointError, ConfigError
from configs.schema import Config
from data.tokenizer import Tokenizer
from inference.sampling import Sampler
from model.cache import KeyValueCache
from model.decoder import Decoder
from parallel.seeds import seed_for

DEFAULT_TOKENS = 100
REPLACEMENT = "\ufffd"
"""What a tokenizer shows for bytes that are no character, or not yet."""


class TextStream:
    """Text of tokens as they come: what `push` and `finish` return is, joined, decode(prompt and tokens) after
    decode(prompt), and no piece of it ends within a character.

    A byte-fallback tokenizer.json is an exception: it reads a whole run of single bytes as no characters if the last of
    them is none. What was shown of such a run stays.
    """

    def __init__(self, tokenizer: Tokenizer, prompt: Sequence[int]) -> None:
        self._tokenizer = tokenizer
        self._ids = list(prompt)
        self._done = len(tokenizer.decode(self._ids))

    def push(self, token: int) -> str:
        """Text that no later token can change. A tail that may become a character is kept back."""
        self._ids.append(token)
        text = self._tokenizer.decode(self._ids)
        return self._take(text.rstrip(REPLACEMENT))

    def finish(self) -> str:
        """What was kept back: bytes that never became a character."""
        return self._take(self._tokenizer.decode(self._ids))

    def _take(self, text: str) -> str:
        piece = text[self._done :]
        self._done += len(piece)
        return piece


def tokens_to_make(config: Config, prompt: int, wanted: int | None) -> int:
    """How many tokens may follow a prompt of so many: `wanted`, or (None) 100 and no more than the model has room for.

    The last one needs no position: nothing follows it. Raises: ConfigError if learned positions do not reach so far.
    """
    made, length = wanted or DEFAULT_TOKENS, config.training.sequence_length
    if config.model.positions != "learned":
        return made
    room = length - prompt + 1
    if room < 1:
        raise ConfigError(
            f"command line: --prompt: has {prompt} tokens: at most the {length} positions that the model has learned"
        )
    if wanted is not None and wanted > room:
        raise ConfigError(
            f"command line: --max-tokens = {wanted}: at most {room} after {prompt} tokens of prompt: "
            f"the model has learned {length} positions"
        )
    return min(made, room)


@dataclass
class Continuation:
    """A continuation of the prompt."""

    tokens: list[int] = field(default_factory=list)
    """Without the end of document."""
    text: str = ""
    ended: Literal["end_of_document", "max_tokens"] = "max_tokens"


def generate(
    decoder: Decoder,
    tokenizer: Tokenizer,
    prompt: Sequence[int],
    sampler: Sampler,
    *,
    samples: int,
    max_tokens: int,
    seed: int,
    show: Callable[[int, str], None],
) -> list[Continuation]:
    """Continue a prompt of at least one token `samples` times, side by side, to its end or for `max_tokens`.

    `show` gets (index of the continuation, next piece of its text) as they come. Continuation i is drawn with a
    generator of its own, from `seed` and i: it does not depend on how many there are.

    Raises: CheckpointError if the model's logits are not finite.
    """
    made = [Continuation() for _ in range(samples)]
    streams = [TextStream(tokenizer, prompt) for _ in range(samples)]
    generators = [torch.Generator().manual_seed(seed_for(seed, "sample", index)) for index in range(samples)]

    def add(index: int, piece: str) -> None:
        made[index].text += piece
        show(index, piece)

    for tokens in next_tokens(decoder, prompt, sampler, generators, max_tokens):
        for index, token in enumerate(tokens):
            if token == tokenizer.eod:
                made[index].ended = "end_of_document"
            if made[index].ended == "max_tokens":
                made[index].tokens.append(token)
                add(index, streams[index].push(token))
        if all(continuation.ended == "end_of_document" for continuation in made):
            break
    for index, stream in enumerate(streams):
        add(index, stream.finish())
    return made


@torch.inference_mode()
def next_tokens(
    decoder: Decoder, prompt: Sequence[int], sampler: Sampler, generators: Sequence[torch.Generator], max_tokens: int
) -> Iterator[list[int]]:
    """The next token of every continuation, one for each generator, `max_tokens` times.

    The prompt goes through the decoder once, in one pass, and every token that is asked for after the first alone.

    Raises: CheckpointError if logits are not finite: the most probable token is then any, and none can be drawn.
    """
    device = next(decoder.parameters()).device
    cache = KeyValueCache(len(decoder.layers), len(prompt) + max_tokens - 1)
    logits_BV = decoder.next_logits(torch.tensor([prompt], device=device), cache).expand(len(generators), -1)
    if len(generators) > 1:
        cache = cache.repeat(len(generators))
    for left in range(max_tokens, 0, -1):
        _require_finite(logits_BV, max_tokens - left)
        tokens_B = sampler(logits_BV, generators)
        yield tokens_B.tolist()
        if left > 1:
            logits_BV = decoder.next_logits(tokens_B[:, None].to(device), cache)


def _require_finite(logits_BV: Tensor, made: int) -> None:
    if not logits_BV.isfinite().all():
        raise CheckpointError(
            f"the model's logits after {made} tokens are not finite (NaN or infinity): its weights are damaged, "
            "or the run had diverged: try an earlier --step"
        )
