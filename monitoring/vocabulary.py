"""Signals of the two ends of the model: log Z of the logits, and the variability of token embeddings (TEV).

Tensor-parallel ranks share the vocabulary. Padded entries of it are left out of both.

Shapes: B sequences of a micro-batch, T sequence, V this rank's share of the padded vocabulary, D hidden, N tokens of
the step on this data-parallel rank, R tensor-parallel ranks.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
import torch.distributed as dist
from torch import Tensor

from monitoring.gather import Labels
from monitoring.parts import DecoderPart
from parallel.clock import timed
from parallel.topology import Topology


class VocabularyMonitor:
    """Probes the logits in the forward passes of a training step, and reads the embedding after it."""

    def __init__(self, chunks: Sequence[DecoderPart], topology: Topology) -> None:
        self._tp, self._device, self._vocab_size = topology.tensor, topology.device, chunks[0].vocab_size
        self._last = [chunk for chunk in chunks if chunk.is_last]
        replica = topology.dp_rank == 0  # ranks of other replicas hold the same embedding
        self._embeddings = [c.embedding for c in chunks if c.embedding is not None and replica]
        self._log_z: list[Tensor] = []
        total: list[tuple[int, ...]] = [()]
        log_z = total if self._last and self._tp.rank == 0 else []
        self.sums: Labels = {"log_z": log_z, "tev": total if self._embeddings else []}
        self.maxima: Labels = {"log_z_max": log_z}

    @contextmanager
    def probing(self) -> Iterator[None]:
        """See the forward passes inside the block."""
        self._log_z = []
        for chunk in self._last:
            chunk.logits_probe = timed(self._tp.clock, "monitoring", self._see)
        try:
            yield
        finally:
            for chunk in self._last:
                chunk.logits_probe = None

    @torch.no_grad()
    def _see(self, logits_BTV: Tensor) -> None:
        """Take log Σ exp of this rank's live logits, one sequence at a time: no second copy of them all."""
        live = self._live_rows(logits_BTV.shape[-1])
        self._log_z += [torch.logsumexp(logits_TV[:, :live].float(), dim=-1) for logits_TV in logits_BTV]

    @torch.no_grad()
    def collect(self) -> dict[str, Tensor]:
        """Sums over tokens and vocabulary rows, and the largest log Z, by label.

        One all-gather over the tensor-parallel ranks of the last stage.
        """
        values = {name: torch.empty(0, device=self._device) for name in ("log_z", "log_z_max", "tev")}
        if self._last:
            log_z_N = self._complete(torch.cat(self._log_z))
            if self._tp.rank == 0:
                values["log_z"], values["log_z_max"] = log_z_N.sum(dtype=torch.float64), log_z_N.amax()
        for embedding in self._embeddings:
            rows_VD = embedding.weight[: self._live_rows(embedding.weight.shape[0])]
            values["tev"] = rows_VD.std(dim=1, correction=0).sum(dtype=torch.float64)
        self._log_z = []
        return values

    def _complete(self, mine_N: Tensor) -> Tensor:
        """(N,) log Z over the whole vocabulary."""
        if self._tp.size == 1:
            return mine_N
        parts_RN = mine_N.new_empty(self._tp.size, len(mine_N))
        dist.all_gather(list(parts_RN), mine_N, group=self._tp.group)
        return torch.logsumexp(parts_RN, dim=0)

    def _live_rows(self, share: int) -> int:
        """How many of this rank's share of the padded vocabulary are tokens."""
        return min(max(self._vocab_size - self._tp.rank * share, 0), share)
