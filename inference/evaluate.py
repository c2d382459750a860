"""Loss of a model on prepared data, sample by sample, and what follows from it.

Shapes: B samples of a batch, T tokens of a sample; N all samples.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from data.samples import Samples
from inference.tokens import TextBytes
from model.decoder import Decoder
from parallel.loss import VocabParallelLoss
from parallel.topology import TensorParallel


@dataclass(frozen=True)
class Evaluation:
    """How well a model predicts N samples of T tokens."""

    loss: float
    """Mean cross-entropy per token in nats: the mean over samples, which all have T targets."""
    standard_error: float | None
    """Of `loss`: the standard deviation of the samples' losses (N - 1 in its denominator) / sqrt(N), as if samples were
    drawn independently; None for one sample."""
    perplexity: float
    """exp(loss)."""
    bits_per_byte: float | None
    """Cross-entropy of all targets in bits, over the UTF-8 bytes of their text; None: those are unknown."""
    samples: int
    tokens: int
    """Targets, ends of documents included."""
    bytes: int | None
    """UTF-8 bytes of the targets' text; an end of document has none, its loss counts all the same."""


def evaluate(
    decoder: Decoder,
    samples: Samples,
    count: int,
    text_bytes: TextBytes | None,
    *,
    batch_size: int,
    advance: Callable[[int], None] = lambda done: None,
) -> Evaluation:
    """The first `count` samples; `advance` hears how many are done."""
    losses: list[float] = []
    size = None if text_bytes is None else 0
    for windows_BT in _batches(samples, count, batch_size):
        losses += sample_losses(decoder, torch.from_numpy(windows_BT)).tolist()
        if text_bytes is not None and size is not None:
            size += text_bytes.of_targets(windows_BT)
        advance(len(losses))
    return summarise(np.array(losses), samples.sequence_length, size)


@torch.inference_mode()
def sample_losses(decoder: Decoder, windows_BT: Tensor) -> Tensor:
    """Mean cross-entropy of each sample in nats, (B,) in fp64 on the CPU; a window is T tokens and one more."""
    windows_BT = windows_BT.to(next(decoder.parameters()).device)
    targets_BT = windows_BT[:, 1:]
    logits_BTV = decoder(windows_BT[:, :-1])
    loss = VocabParallelLoss(decoder.vocab_size, TensorParallel())
    each = [loss(logits_BTV[row : row + 1], targets_BT[row : row + 1]) for row in range(len(windows_BT))]
    return torch.stack(each).double().cpu()


def summarise(losses_N: np.ndarray, length: int, size: int | None) -> Evaluation:
    """From the mean loss of each sample of `length` targets, whose text has `size` bytes (None: unknown)."""
    count, loss = len(losses_N), float(losses_N.mean())
    with np.errstate(invalid="ignore"):  # losses that are infinite have no deviation: NaN
        deviation = float(losses_N.std(ddof=1)) if count > 1 else None
    return Evaluation(
        loss=loss,
        standard_error=None if deviation is None else deviation / math.sqrt(count),
        perplexity=math.inf if loss >= 700 else math.exp(loss),
        bits_per_byte=loss * count * length / math.log(2) / size if size else None,
        samples=count,
        tokens=count * length,
        bytes=size,
    )


def _batches(samples: Samples, count: int, batch_size: int) -> Iterator[np.ndarray]:
    for first in range(0, count, batch_size):
        yield np.stack([samples[k] for k in range(first, min(first + batch_size, count))])
