"""The weights a run begins with when `init_from = hf:DIR` names a Hugging Face checkpoint: read slice by slice by each
rank, in any layout.

Training starts anew at step 0. With sigmaReparam, W is as it is there, u, v and sigma are found from it and
gamma = sigma(W): the logits are those of the checkpoint before the first step.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, Shard

from configs.errors import CheckpointError, ConfigError
from configs.schema import Config
from data.samples import Samples
from data.tokenizer import load as load_tokenizer
from formats.architectures.ours import TABLES
from formats.hub import TOKENIZER, HubCheckpoint
from parallel.linear import ShardedLinear
from parallel.sharding import tensor_mesh, whole_tensors
from parallel.spectral import SpectralReparam
from parallel.topology import Topology
from training.checkpoint.source import naming, require_same_model

TEXTS = ("The quick brown fox jumps over the lazy dog.", "def main():\n    return 42\n", "Ünïcödé: 漢字 🙂")
"""Enough to tell another tokenizer; not every difference."""


@dataclass(frozen=True)
class HubWeights:
    """A checkpoint of the same model, to load weights from."""

    folder: Path
    architecture: str
    vocab_size: int
    """Tokens of the data: rows of the checkpoint's tables after those are left out."""
    left_out: int

    def message(self, config: Config) -> str:
        """One line: which checkpoint, and what is done to its weights."""
        how = [f"weights of {self.folder} ({self.architecture})"]
        if config.model.reparam.kind == "sigma":
            how.append("u, v, sigma found from W and gamma = sigma")
        if self.left_out:
            how.append(f"{self.left_out} rows after the {self.vocab_size} tokens of the data left out")
        return "; ".join(how)

    @torch.no_grad()
    def load(self, chunks: Sequence[nn.Module], spectral: SpectralReparam, config: Config, topology: Topology) -> None:
        """Fill this rank's parameters, u, v and sigma, and write W_hat.

        Raises:
            CheckpointError: the checkpoint cannot be read (any more), or has numbers that are not finite.
            ConfigError: a matrix to be reparametrised is all zeros.
        """
        checkpoint = open_hub(config)
        mesh, rank = tensor_mesh(topology.tensor, topology.device.type), topology.tensor.rank
        with naming(config):
            for name, parameter in _parameters(chunks):
                sharding = parameter.sharding  # type: ignore[attr-defined]
                for whole, part in whole_tensors(name, parameter.detach(), sharding, mesh):
                    self._fill(whole, part, checkpoint, rank)
        spectral.start(config.model.reparam.model_copy(update={"gamma_init": "sigma"}), config.training.seed)

    def _fill(self, name: str, part: Tensor, checkpoint: HubCheckpoint, rank: int) -> None:
        """Copy this rank's place of a tensor; what pads a vocabulary is zero."""
        local, place = part, [slice(0, size) for size in part.shape]
        if isinstance(part, DTensor):
            local, (sharded,) = part.to_local(), part.placements
            assert isinstance(sharded, Shard)
            size = local.shape[sharded.dim]
            place[sharded.dim] = slice(rank * size, (rank + 1) * size)
        if name in TABLES:
            local.zero_()
            place[0] = slice(place[0].start, min(place[0].stop, self.vocab_size))
            local = local[: max(0, place[0].stop - place[0].start)]
        if len(local):
            local.copy_(checkpoint.read(name, tuple(place)))


def open_hub(config: Config) -> HubCheckpoint:
    """The checkpoint that `init_from` names, of the configured model.

    Raises: ConfigError if there is none; CheckpointError if it is of another model, with a line for each difference.
    """
    folder = config.hub_folder
    assert folder is not None
    if not folder.is_dir():
        raise ConfigError(
            f"init_from = {config.init_from}: no such folder; hf: is followed by one with config.json and .safetensors"
        )
    with naming(config):
        checkpoint = HubCheckpoint(folder, config.model)
        require_same_model(folder, checkpoint.model.model_dump(mode="json"), config)
        length = config.training.sequence_length
        if config.model.positions == "learned" and checkpoint.length != length:
            raise CheckpointError(
                f"training.sequence_length = {length}: {folder} has learned positions of {checkpoint.length}"
            )
    return checkpoint


def choose_hub(config: Config, samples: Samples) -> HubWeights:
    """What `init_from` names, after a look at its tokenizer and at the numbers that must be zero or equal.

    Raises: ConfigError, CheckpointError.
    """
    checkpoint = open_hub(config)
    with naming(config):
        if checkpoint.vocab_size < samples.vocab_size:
            raise CheckpointError(
                f"data.sources: a vocabulary of {samples.vocab_size} tokens: {checkpoint.folder} has rows for "
                f"{checkpoint.vocab_size}"
            )
        _require_same_tokens(checkpoint.folder, config.data.sources[0].path)
        checkpoint.check_numbers()
    left_out = checkpoint.vocab_size - samples.vocab_size
    return HubWeights(checkpoint.folder, checkpoint.architecture.class_name, samples.vocab_size, left_out)


def _require_same_tokens(folder: Path, data: Path) -> None:
    """Raise CheckpointError if a tokenizer beside the weights gives other ids than that of the data."""
    path = folder / TOKENIZER
    if not path.exists():
        return
    from tokenizers import Tokenizer

    theirs, ours = Tokenizer.from_file(str(path)), load_tokenizer(data)
    theirs.no_truncation()
    theirs.no_padding()
    for text in TEXTS:
        there, here = theirs.encode(text, add_special_tokens=False).ids, ours.encode(text).tolist()
        if there != here:
            raise CheckpointError(
                f"data.sources: {data} has another tokenizer than {path}: {text!r} is {there[:4]} ... there and "
                f"{here[:4]} ... here; prepare data with that tokenizer"
            )


def _parameters(chunks: Sequence[nn.Module]) -> list[tuple[str, nn.Parameter]]:
    """This rank's parameters but gammas, which follow from them."""
    linears = [module for chunk in chunks for module in chunk.modules() if isinstance(module, ShardedLinear)]
    gammas = {id(linear.gamma) for linear in linears}
    named = [pair for chunk in chunks for pair in chunk.named_parameters()]
    return [(name, parameter) for name, parameter in named if id(parameter) not in gammas]
