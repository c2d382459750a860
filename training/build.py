"""From a resolved configuration to this rank's part of the model, ready to step.

The order is always the same: layers of this rank's stages -> another run's weights, if it starts from them -> spectral
start -> optimizer -> pipeline -> engine.
"""

from dataclasses import dataclass

import torch
from torch import nn

from configs.schema import ZERO_BUBBLE, Config
from model.attention import Attention
from model.decoder import Decoder
from parallel.embedding import count_rows
from parallel.engine import Engine
from parallel.linear import LinearSpec, ShardedLinear
from parallel.loss import VocabParallelLoss
from parallel.pipeline import Pipeline, stage_indices, stage_layers
from parallel.spectral import SpectralReparam
from parallel.topology import Topology
from training.checkpoint.hub import HubWeights
from training.checkpoint.weights import InitialWeights
from training.optimizer import build_optimizer

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


@dataclass(frozen=True)
class Trainer:
    """The moving parts of one rank."""

    chunks: list[Decoder]
    spectral: SpectralReparam
    pipeline: Pipeline
    engine: Engine

    def attention_layers(self) -> list[tuple[int, Attention]]:
        """(index in the model, attention) of the decoder layers on this rank."""
        return [pair for chunk in self.chunks for pair in chunk.attention_layers()]

    def named_parameters(self) -> list[tuple[str, nn.Parameter]]:
        """Parameters under the names they have in the whole model, the same in every layout."""
        return [pair for chunk in self.chunks for pair in chunk.named_parameters()]

    def parameters(self) -> list[nn.Parameter]:
        """This rank's parameters."""
        return [parameter for _, parameter in self.named_parameters()]


def build_chunks(config: Config, topology: Topology, vocab_size: int) -> list[Decoder]:
    """The decoder parts of this pipeline rank's stages, with their initial weights."""
    spec = LinearSpec(
        tp=topology.tensor,
        seed=config.training.seed,
        compute_dtype=DTYPES[config.training.precision],
        reparametrised=config.model.reparam.kind == "sigma",
        bias=config.model.bias,
        overlap=config.parallel.pp == 1 or config.parallel.schedule not in ZERO_BUBBLE,
    )
    stages = config.parallel.pp * config.parallel.chunks
    chunks = [
        Decoder(
            config.model,
            spec,
            vocab_size=vocab_size,
            length=config.training.sequence_length,
            layers=stage_layers(config.model.layers, stages, stage),
            recompute=config.training.recompute,
            compiled=config.training.compile,
        )
        for stage in stage_indices(config.parallel, topology.pp_rank)
    ]
    # Made on the CPU; tensors without memory, as in a dry run, cannot be moved at all.
    return chunks if topology.device.type == "cpu" else [chunk.to(topology.device) for chunk in chunks]


def build_trainer(
    config: Config, topology: Topology, vocab_size: int, weights: InitialWeights | HubWeights | None = None
) -> Trainer:
    """Everything one rank needs to train, from `weights` or, without them, from random ones; collective.

    Raises:
        ConfigError: a reparametrised matrix starts at zero.
        CheckpointError: `weights` are not this model's.
    """
    chunks = build_chunks(config, topology, vocab_size)
    linears = [(name, m) for chunk in chunks for name, m in chunk.named_modules() if isinstance(m, ShardedLinear)]
    spectral = SpectralReparam(linears, topology.tensor)
    if weights is None:
        spectral.start(config.model.reparam, config.training.seed)
    else:
        weights.load(chunks, spectral, config, topology)
    parameters = [pair for chunk in chunks for pair in chunk.named_parameters()]
    optimizer = build_optimizer(parameters, config.optimizer, topology.device, vocab_size)
    pipeline = build_pipeline(config, topology, chunks, vocab_size)
    engine = Engine(nn.ModuleList(chunks), optimizer, topology, config.parallel)
    return Trainer(chunks, spectral, pipeline, engine)


def build_pipeline(config: Config, topology: Topology, chunks: list[Decoder], vocab_size: int) -> Pipeline:
    """The stages of this rank and their schedule; not collective."""
    training, tp = config.training, topology.tensor
    micro = training.micro_batch_size
    assert micro is not None, "configs.checks.resolve fills micro_batch_size"
    length = training.sequence_length
    rows = count_rows(vocab_size, config.model.vocab_multiple)
    return Pipeline(
        chunks,
        VocabParallelLoss(vocab_size, tp, label_smoothing=training.label_smoothing, z_loss=training.z_loss),
        VocabParallelLoss(vocab_size, tp),
        topology,
        config.parallel,
        micro_batches=training.global_batch_size // (topology.dp_size * micro),
        hidden_shape=(micro, length // tp.size if tp.sequence_parallel else length, config.model.hidden_size),
        logits_shape=(micro, length, rows // tp.size),
        dtype=DTYPES[training.precision],
    )
