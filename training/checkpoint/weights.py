"""The weights a run begins with when `init_from` names another's checkpoint: parameters only, in any layout.

Training starts anew at step 0 with this run's own seed, data, schedule and zero moments. If the reparametrisation is
another, it is translated so that the function stays the same:

    none  -> sigma    W as it is; u, v and sigma found from it; gamma = sigma
    sigma -> none     W := (gamma / sigma) W
    sigma -> sigma    W, gamma, u, v and sigma as they were; if matrices are grouped otherwise, by way of none

Shapes: K matrices packed in one weight.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.distributed.checkpoint as dcp
from pydantic import ValidationError
from torch import Tensor, nn
from torch.distributed.checkpoint import HuggingFaceStorageReader

from configs.errors import CheckpointError, DataError
from configs.schema import Config, ModelConfig
from data.samples import Samples
from model import attention, feedforward
from parallel.embedding import count_rows
from parallel.linear import ColumnParallelLinear, ShardedLinear
from parallel.sharding import Sharding, tensor_mesh, whole_tensors
from parallel.spectral import SpectralReparam
from parallel.topology import Topology
from training.checkpoint import store
from training.checkpoint.hub import HubWeights, choose_hub
from training.checkpoint.source import Source, choose
from training.reductions import from_logging_rank


@dataclass(frozen=True)
class _Scales:
    """What turns W into W_hat in a reparametrised layer of the source: gamma and sigma (K,) of its matrices."""

    rows: list[int]
    """This rank's rows of each matrix."""
    gamma_K: Tensor
    sigma_K: Tensor

    def fold_into(self, weight_OI: Tensor) -> None:
        scale_K = self.gamma_K / self.sigma_K
        for block, scale in zip(weight_OI.split(self.rows), scale_K, strict=True):
            block.mul_(scale)


@dataclass(frozen=True)
class InitialWeights:
    """A good checkpoint of the same model, to load weights from."""

    folder: Path
    model: ModelConfig
    """The checkpoint's model; only what `training.checkpoint.source.FREE` names may be other than this run's."""
    step: int
    passed_over: list[str]

    def message(self, config: Config) -> str:
        """One line: which checkpoint, and what is done to its weights."""
        how = []
        if _is_same_grouping(self.model, config.model):
            how.append("as they were")
        else:
            if self.model.reparam.kind == "sigma":
                how.append("gamma / sigma folded into W")
            if config.model.reparam.kind == "sigma":
                how.append("u, v, sigma found from W and gamma = sigma")
        return "; ".join([f"weights of {self.folder}, {', then '.join(how)}", *self.passed_over])

    @torch.no_grad()
    def load(self, chunks: Sequence[nn.Module], spectral: SpectralReparam, config: Config, topology: Topology) -> None:
        """Fill this rank's parameters, u, v and sigma, and write W_hat; collective.

        Raises:
            CheckpointError: a tensor is missing or of another shape.
            ConfigError: a matrix to be reparametrised is all zeros.
        """
        as_they_were = _is_same_grouping(self.model, config.model)
        scales = {} if as_they_were else dict(_scales(chunks, self.model))
        mesh = tensor_mesh(topology.tensor, topology.device.type)
        tensors: dict[str, Tensor] = {}
        for name, tensor, sharding in _saved_tensors(chunks, spectra=as_they_were):
            tensors |= whole_tensors(name, tensor, sharding, mesh)
        for name, scale in scales.items():
            tensors |= {f"model/{name}.gamma": scale.gamma_K, f"spectral/{name}/sigma": scale.sigma_K}
        try:
            dcp.load(tensors, storage_reader=HuggingFaceStorageReader(str(self.folder)))
        except dcp.api.CheckpointException as error:
            raise CheckpointError(
                f"init_from = {config.init_from}: {self.folder} does not hold this model's weights: "
                f"{(str(error).strip().splitlines() or ['unreadable'])[0]}"
            ) from None
        for name, layer in _linears(chunks):
            if name in scales:
                scales[name].fold_into(layer.weight)
        if as_they_were:
            spectral.restore()
        else:
            spectral.start(config.model.reparam.model_copy(update={"gamma_init": "sigma"}), config.training.seed)


def initial_weights(config: Config, topology: Topology, samples: Samples) -> InitialWeights | HubWeights | None:
    """What `init_from` names; None if it is not set, or the run has checkpoints of its own. Collective.

    The logging rank reads every byte before any rank loads one.

    Raises:
        ConfigError, CheckpointError: there is no good checkpoint, or it is of another model or tokenizer.
    """
    if config.init_from is None:
        return None
    return from_logging_rank(topology, lambda: _choose(config, samples))


def _choose(config: Config, samples: Samples) -> InitialWeights | HubWeights | None:
    if store.steps(config.run_dir / store.FOLDER):
        return None
    if config.hub_folder is not None:
        return choose_hub(config, samples)
    source = choose(config)
    problem = _other_tokens(source, samples) or _other_tables(source.folder, config, samples.vocab_size)
    if problem is not None:
        raise CheckpointError(f"init_from = {config.init_from}: {problem}")
    return InitialWeights(source.folder, source.model(config), source.manifest.step, source.passed_over)


def _other_tokens(source: Source, samples: Samples) -> str | None:
    """What is wrong if the source's tokenizer is another; unknown, and nothing wrong, where its data are gone."""
    if source.manifest.data_fingerprint == samples.fingerprint:
        return None
    try:
        then = Config.model_validate(source.manifest.config)
        theirs = Samples(then.data.sources, "train", then.training.sequence_length, then.training.seed)
    except (ValidationError, DataError):
        return None
    if theirs.fingerprint != source.manifest.data_fingerprint or theirs.tokenizer_hash == samples.tokenizer_hash:
        return None
    return (
        f"data.sources have another tokenizer than {', '.join(str(data.path) for data in then.data.sources)}, which "
        f"{source.folder} was trained on; its weights know those tokens only: prepare data with that tokenizer"
    )


def _other_tables(folder: Path, config: Config, vocab_size: int) -> str | None:
    """What is wrong if the tables of tokens or positions have other sizes than this run's."""
    saved = HuggingFaceStorageReader(str(folder)).read_metadata().state_dict_metadata
    sizes = {name: tuple(tensor.size) for name, tensor in saved.items()}  # type: ignore[union-attr]
    rows, length = count_rows(vocab_size, config.model.vocab_multiple), config.training.sequence_length
    embedding, positions = sizes.get("model/embedding.weight"), sizes.get("model/positions.weight")
    if embedding is not None and embedding[0] != rows:
        return (
            f"data.sources: a vocabulary of {vocab_size} tokens takes an embedding of {rows} rows: "
            f"{folder} has {embedding[0]}"
        )
    if config.model.positions == "learned" and positions is not None and positions[0] != length:
        return f"training.sequence_length = {length}: {folder} has learned positions of {positions[0]}"
    return None


def _saved_tensors(chunks: Sequence[nn.Module], *, spectra: bool) -> Iterator[tuple[str, Tensor, Sharding]]:
    """(name in the checkpoint, tensor to fill, sharding) of parameters; gammas, u, v and sigma only with `spectra`."""
    gammas = {id(layer.gamma) for _, layer in _linears(chunks)}
    for chunk in chunks:
        for name, parameter in chunk.named_parameters():
            if spectra or id(parameter) not in gammas:
                yield f"model/{name}", parameter.detach(), parameter.sharding  # type: ignore[attr-defined]
    if spectra:
        for name, layer in _linears(chunks):
            if not layer.reparametrised:
                continue  # what monitoring knew of it is the other run's
            for key, tensor, sharding in layer.spectral_state():
                yield f"spectral/{name}/{key}", tensor, sharding


def _scales(chunks: Sequence[nn.Module], model: ModelConfig) -> Iterator[tuple[str, _Scales]]:
    """Room for gamma and sigma of the layers that `model`, the source's, reparametrises."""
    for name, layer in _linears(chunks):
        if model.reparam.kind == "sigma" and (name != "head" or model.reparam.head):
            rows = _matrix_rows(layer, model)
            like = layer.weight.detach()
            yield name, _Scales(rows, like.new_zeros(len(rows)), like.new_zeros(len(rows)))


def _matrix_rows(layer: ShardedLinear, model: ModelConfig) -> list[int]:
    """This rank's rows of each matrix that `model` would pack in the layer's weight."""
    if not isinstance(layer, ColumnParallelLinear):
        return [layer.weight.shape[0]]
    grouped = {
        ("q", "k", "v"): attention.MATRICES[model.reparam.qkv],
        ("gate", "up"): feedforward.MATRICES[model.reparam.gate_up],
    }
    matrices = grouped.get(tuple(layer.blocks), [[block] for block in layer.blocks])
    return [sum(layer.blocks[block] for block in matrix) for matrix in matrices]


def _linears(chunks: Sequence[nn.Module]) -> list[tuple[str, ShardedLinear]]:
    return [(name, m) for chunk in chunks for name, m in chunk.named_modules() if isinstance(m, ShardedLinear)]


def _is_same_grouping(one: ModelConfig, other: ModelConfig) -> bool:
    """Whether the same matrices have a gamma and a spectral norm of their own."""
    return _grouping(one) == _grouping(other)


def _grouping(model: ModelConfig) -> tuple[object, ...]:
    reparam = model.reparam
    if reparam.kind == "none":
        return ()
    gate_up = reparam.gate_up if model.activation == "swiglu" else None
    head = reparam.head and not model.tie_embeddings
    return reparam.kind, reparam.qkv, gate_up, head
