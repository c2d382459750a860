"""The decoder of a run on one device, without process groups: plain weights, in the dtype it is to compute in.

What a sigmaReparam run multiplies by is (gamma / sigma) W: that is read, and the decoder built is an ordinary one.
"""

from dataclasses import dataclass

import torch

from configs.errors import CheckpointError, ConfigError
from configs.schema import Config, ReparamConfig
from exchange.plain import PlainWeights
from formats.architectures.ours import TABLES
from model.decoder import Decoder
from parallel.embedding import count_rows
from parallel.linear import LinearSpec
from parallel.sharding import whole_tensors
from parallel.topology import TensorParallel

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


@dataclass(frozen=True)
class Where:
    """Where a decoder computes, and in what."""

    device: torch.device
    dtype: torch.dtype


def place(config: Config, device: str, dtype: str | None) -> Where:
    """`device`: auto, cpu or cuda; `dtype`: fp32 or bf16, None: the run's own. Raises: ConfigError."""
    if device not in ("auto", "cpu", "cuda"):
        raise ConfigError(f"command line: --device = {device}: must be auto, cpu or cuda")
    if dtype not in (None, *DTYPES):
        raise ConfigError(f"command line: --dtype = {dtype}: must be {' or '.join(DTYPES)}")
    if device == "cuda" and not torch.cuda.is_available():
        raise ConfigError("command line: --device = cuda: this machine has no CUDA device (auto or cpu)")
    cuda = device != "cpu" and torch.cuda.is_available()
    return Where(torch.device("cuda" if cuda else "cpu"), DTYPES[dtype or config.training.precision])


def load_decoder(weights: PlainWeights, vocab_size: int, where: Where, *, length: int | None = None) -> Decoder:
    """The whole decoder, filled tensor by tensor: memory holds the decoder and one tensor in fp32.

    Tables have a row for each of `vocab_size` tokens and no padding. `length`: the longest sequence, if that is more
    than the run's; only rotary embeddings reach so far.

    Raises: CheckpointError if the checkpoint is not of such a model, or of a tokenizer of another size.
    """
    config = weights.config
    model = config.model.model_copy(update={"reparam": ReparamConfig(), "vocab_multiple": 1})
    spec = LinearSpec(
        TensorParallel(), seed=0, compute_dtype=where.dtype, master_dtype=where.dtype, bias=model.bias, drawn=False
    )
    with where.device:  # tensors are made where they are to stay
        decoder = Decoder(
            model,
            spec,
            vocab_size=vocab_size,
            length=max(length or 0, config.training.sequence_length),
            layers=range(model.layers),
        )
    decoder.requires_grad_(False)
    _fill(decoder, weights, vocab_size)
    return decoder


def _fill(decoder: Decoder, weights: PlainWeights, vocab_size: int) -> None:
    left = set(weights.names)
    for name, parameter in decoder.named_parameters():
        for whole, part in whole_tensors(name, parameter, parameter.sharding, None):  # type: ignore[attr-defined]
            if whole not in left:
                raise CheckpointError(f"{weights.folder}: has no {whole}, which its model needs")
            left.remove(whole)
            if whole in TABLES:
                _require_tokens(whole, weights, vocab_size)
            tensor = weights.read(whole)[: len(part)] if whole in TABLES else weights.read(whole)
            if tensor.shape != part.shape:
                shapes = f"the shape {tuple(tensor.shape)}, in its model {tuple(part.shape)}"
                raise CheckpointError(f"{weights.folder}: {whole} has {shapes}")
            part.copy_(tensor)
    if left:
        raise CheckpointError(f"{weights.folder}: has a {min(left)}, which its model has not")


def _require_tokens(name: str, weights: PlainWeights, vocab_size: int) -> None:
    rows, multiple = weights.shape(name)[0], weights.config.model.vocab_multiple
    if rows not in (vocab_size, count_rows(vocab_size, multiple)):
        raise CheckpointError(
            f"{weights.folder}: {name} has {rows} rows: not of a tokenizer with {vocab_size} tokens, "
            f"which the data or --tokenizer say"
        )
