"""Every signal of a measured step, the same on every rank; nothing at all on other steps.

Shapes: L layers, A query heads, M matrices, P tensor-parallel ranks.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING

import numpy as np

from monitoring.activations import ActivationMonitor
from monitoring.attention import HeadMonitor
from monitoring.entropy import causal_maximum
from monitoring.gather import Gather, tell
from monitoring.measure import Measurement
from monitoring.parts import Trained
from monitoring.spectra import SpectraMonitor, model_order
from monitoring.vocabulary import VocabularyMonitor
from monitoring.weights import WeightMonitor
from parallel.topology import Topology

if TYPE_CHECKING:
    from configs.schema import Config


class Monitor:
    """Measures a training step in three moves: `forward` around it, `before_update`, `collect` after the update.

    All but `forward` are for measured steps only. Collectives of a measured step: one all-gather over all ranks; over
    tensor-parallel ranks one all-reduce for the spectral norms of plain matrices, one all-gather for log Z, and one
    for the layers' outputs under sequence parallelism.
    """

    def __init__(self, trainer: Trained, topology: Topology, config: Config) -> None:
        """Collective: ranks tell each other, once, what each of them will report."""
        matrices = [*trainer.spectral.matrices, *trainer.spectral.plain]
        self._config = config
        sizes = {matrix.name: matrix.layer.weight[matrix.rows].numel() for matrix in matrices}
        everywhere = {name: size for told in tell(sizes, topology) for name, size in told.items()}
        self._names = model_order(everywhere)
        self._numbers_M = np.array([everywhere[name] for name in self._names])  # on one tensor-parallel rank
        index = {name: place for place, name in enumerate(self._names)}
        self._heads = HeadMonitor(trainer.attention_layers(), topology)
        self._activations = ActivationMonitor(trainer.chunks, topology, config.training.sequence_length)
        self._vocabulary = VocabularyMonitor(trainer.chunks, topology)
        self._weights = WeightMonitor(trainer.engine, matrices, trainer.attention_layers(), index, topology)
        self._spectra = SpectraMonitor(trainer.spectral, index, config.training.seed)
        self._all = (self._heads, self._activations, self._vocabulary, self._weights, self._spectra)
        sums = {name: labels for part in self._all for name, labels in part.sums.items()}
        maxima = {name: labels for part in self._all for name, labels in part.maxima.items()}
        self._gather = Gather(sums, maxima, topology)
        self._vocab_size = trainer.chunks[0].vocab_size
        self._dp_size = topology.dp_size

    @contextmanager
    def forward(self, measuring: bool) -> Iterator[None]:
        """See the forward and backward passes inside the block; nothing at all when not `measuring`."""
        with ExitStack() as probes:
            if measuring:
                for part in (self._heads, self._activations, self._vocabulary):
                    probes.enter_context(part.probing())
            yield

    def before_update(self) -> None:
        """To be called when gradients are averaged and weights not yet updated; not collective."""
        self._weights.before_update()

    def collect(self) -> Measurement:
        """What the step showed. To be called after the update and `SpectralReparam.refresh`. Collective."""
        seen = self._gather({name: value for part in self._all for name, value in part.collect().items()})
        length, sequences = self._config.training.sequence_length, self._config.training.global_batch_size
        tokens = sequences * length
        numbers = tokens * self._config.model.hidden_size
        weight_M = seen["weight"].sum(1)
        with np.errstate(divide="ignore", invalid="ignore"):  # inf or NaN is what such a weight or gradient gives
            return Measurement(
                maximum=causal_maximum(length),
                matrices=self._names,
                entropy_LA=seen["entropy"] / tokens,
                entropy_bound_LA=seen["entropy_bound"] / tokens,
                max_logit_LA=seen["max_logit"],
                head_grad_LA=np.sqrt(seen["head_grad"]),
                sigma_M=seen["sigma"],
                gamma_M=seen["gamma"],
                weight_rms_M=np.sqrt(weight_M / (self._numbers_M * seen["weight"].shape[1])),
                grad_norm_M=np.sqrt(seen["grad"]),
                update_ratio_M=np.sqrt(seen["update"] / weight_M),
                shard_rms_MP=np.sqrt(seen["weight"] / self._numbers_M[:, None]),
                qk_grad_ratio_L=np.sqrt(seen["head_grad"].sum(1) / seen["value_grad"]),
                token_cosine_L=seen["token_cosine"] / sequences,
                relative_residual_L=seen["relative_residual"] / sequences,
                activation_rms_L=np.sqrt(seen["activation"] / numbers),
                activation_grad_rms_L=np.sqrt(seen["activation_grad"] / numbers) / self._dp_size,
                tev=float(seen["tev"] / self._vocab_size),
                log_z=float(seen["log_z"] / tokens),
                log_z_max=float(seen["log_z_max"]),
            )
