"""Loss on the validation split."""

import torch

from configs.schema import Config
from data.samples import Samples
from parallel.pipeline import Pipeline
from parallel.topology import Topology
from training.batches import Batches
from training.reductions import mean_loss


class Evaluator:
    """The same validation sequences every time, in whole global batches, whatever the layout."""

    def __init__(self, config: Config, topology: Topology, pipeline: Pipeline) -> None:
        training = config.training
        samples = Samples(config.data.sources, "validation", training.sequence_length, training.seed)
        self._batches = Batches(samples, training.global_batch_size, topology)
        self._count = -(-training.eval_samples // training.global_batch_size)
        self._pipeline, self._topology = pipeline, topology

    @torch.no_grad()
    def loss(self) -> float:
        """Mean cross-entropy per token in nats, on every rank. Collective."""
        total = 0.0
        for index in range(self._count):
            loss_here = self._pipeline.evaluate(*self._batches.step(index))
            total += mean_loss(loss_here, self._pipeline, self._topology)
        return total / self._count
