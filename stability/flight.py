"""The last steps of a run, kept in memory by every rank, and written as one record when a detector fires.

What is noted on the device stays there: no note waits for the device or talks to another rank. Only `write` does.

Shapes: S steps, N numbers noted at each, R ranks, P parameters (parts of packed ones), M matrices, G global batch.
"""

import hashlib
import platform
import socket
import sys
import time
from collections import deque
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import Tensor, nn

from configs.schema import Config
from data.documents import sample_table
from data.manifest import digest
from data.samples import Samples
from parallel.sharding import Sharding
from parallel.spectral import SpectralReparam
from parallel.topology import Topology
from stability.alarms import Alarm
from stability.record import Header, Place, Record, Track, record_id
from stability.shares import Share, gradient_tracks, measured_tracks, spectral_tracks

PACKAGES = ("steadytrain", "torch", "numpy", "deepspeed", "megatron-core")


class Parts(Protocol):
    """What the recorder asks of `training.build.Trainer`."""

    @property
    def spectral(self) -> SpectralReparam: ...

    def named_parameters(self) -> list[tuple[str, nn.Parameter]]: ...


class Measured(Protocol):
    """What the recorder asks of `monitoring.measure.Measurement`."""

    def arrays(self) -> Mapping[str, NDArray[Any]]: ...


class Ring:
    """Rows of N numbers for the last S steps, on the device they come from."""

    def __init__(self, length: int, width: int, device: torch.device) -> None:
        self._values_SN = torch.zeros(length, width, device=device)
        self._steps = [0] * length  # 0: nothing there

    def note(self, step: int, values_N: Tensor) -> None:
        """Keep the row of `step`, in place of the oldest."""
        slot = step % len(self._steps)
        self._values_SN[slot].copy_(values_N)
        self._steps[slot] = step

    def drop_after(self, step: int) -> None:
        """Forget later steps."""
        self._steps = [kept if kept <= step else 0 for kept in self._steps]

    def track(self) -> Track:
        """What is there, oldest first; waits for the device."""
        slots = sorted((slot for slot, step in enumerate(self._steps) if step), key=self._steps.__getitem__)
        steps = np.array([self._steps[slot] for slot in slots], dtype=np.int64)
        return Track(steps, self._values_SN.cpu().numpy()[slots])


class FlightRecorder:
    """Notes every step of one rank. Steps count updates done, from 1; all ranks make the same calls.

    `note_*` neither wait for the device nor communicate. Making one and `write` are collective.
    """

    def __init__(self, config: Config, trainer: Parts, topology: Topology, samples: Samples) -> None:
        length = config.monitoring.record_steps
        self._config, self._topology, self._samples = config, topology, samples
        self._parameters = trainer.named_parameters()
        self._names = [part for name, parameter in self._parameters for part in part_names(name, parameter)]
        self._zero = torch.zeros((), device=topology.device)
        self._gradients = Ring(length, len(self._names), topology.device)
        self._matrices = [matrix.name for matrix in trainer.spectral.matrices]
        self._reparametrised = [layer for layer in trainer.spectral.layers if layer.reparametrised]
        self._spectra = Ring(length, 2 * len(self._matrices), topology.device)
        self._steps: deque[tuple[int, dict[str, float]]] = deque(maxlen=length)
        # Far fewer than the steps: as many again reach further back, and a median needs them.
        self._measured: deque[tuple[int, Mapping[str, NDArray[Any]]]] = deque(maxlen=length)
        self._rollbacks = 0
        self._ranks = _all(_place(topology), topology)

    def note_gradients(self, step: int) -> None:
        """Norms of this rank's own gradients, to be called before ranks add up or average any of them.

        Of a reparametrised matrix that is dL/dW_hat. A parameter without a gradient, as gamma is then, counts as 0.
        """
        gradients = [part for _, parameter in self._parameters for part in self._parts(parameter)]
        self._gradients.note(step, torch.stack(torch._foreach_norm(gradients)))

    def note_spectra(self, step: int) -> None:
        """Spectral norm and scale of this rank's matrices, after `SpectralReparam.refresh`."""
        if self._matrices:
            sigma = [layer.sigma for layer in self._reparametrised]
            gamma = [layer.gamma.detach() for layer in self._reparametrised if layer.gamma is not None]
            self._spectra.note(step, torch.cat(sigma + gamma))

    def note_step(
        self, step: int, *, loss: float, grad_norm: float, lr: float, seconds: float, kept: bool, batch: int
    ) -> None:
        """What all ranks know of a step; it took samples batch x G to batch x G + G - 1."""
        values = {"loss": loss, "grad_norm": grad_norm, "lr": lr, "seconds": seconds, "kept": kept, "batch": batch}
        self._steps.append((step, values))

    def note_measurement(self, step: int, measurement: Measured) -> None:
        """What the monitors saw at a step, the same on every rank."""
        self._measured.append((step, measurement.arrays()))

    def rollback(self, step: int) -> None:
        """Forget the steps after `step`, which will be trained again; records that show them stay as they are."""
        self._gradients.drop_after(step)
        self._spectra.drop_after(step)
        for notes in (self._steps, self._measured):
            while notes and notes[-1][0] > step:
                notes.pop()
        self._rollbacks += 1

    def write(self, alarms: Sequence[Alarm]) -> Path | None:
        """Write what is known of the last steps; its path on the logging rank, None elsewhere. Collective.

        The first alarm names the record. Called again for the same one, it replaces the record by one with the steps
        since. After a rollback the same step may alarm again: that is another record, and has another name. A disk that
        refuses is told on stderr; training goes on (None).
        """
        name = record_id(alarms[0]) + (f"-{self._rollbacks + 1}" if self._rollbacks else "")
        shares = _gather(self._share(), self._topology)
        if shares is None:
            return None
        try:
            return self._assemble(name, alarms, shares).write(self._config.run_dir)
        except OSError as error:
            sys.stderr.write(f"step {alarms[0].step}: no forensic record: {error}\n")
            return None

    def _parts(self, parameter: nn.Parameter) -> Sequence[Tensor]:
        if parameter.grad is None:
            return [self._zero] * len(part_names("", parameter))
        sharding = _sharding(parameter)
        if len(sharding.blocks) < 2 or sharding.dim is None:
            return [parameter.grad]
        return parameter.grad.split([size for _, size in sharding.blocks], sharding.dim)

    def _share(self) -> Share:
        topology = self._topology
        # Ranks of one tensor-parallel group and replicas hold the same sigma and gamma.
        tells_spectra = topology.tensor.rank == 0 and topology.dp_rank == 0
        return Share(
            parameters=self._names,
            gradients=self._gradients.track(),
            matrices=self._matrices,
            spectra=self._spectra.track() if tells_spectra else None,
            random_state=_random_state(topology.device),
        )

    def _assemble(self, name: str, alarms: Sequence[Alarm], shares: list[Share]) -> Record:
        config = self._config.model_dump(mode="json")
        header = Header(
            id=name,
            run=self._config.run.name,
            written=time.time(),
            alarms=list(alarms),
            config=config,
            config_digest=digest(config),
            data_fingerprint=self._samples.fingerprint,
            ranks=self._ranks,
            versions=_versions(),
            seed=self._config.training.seed,
            random_states=[share.random_state for share in shares],
        )
        tracks, labels = gradient_tracks(shares)
        for more_tracks, more_labels in (spectral_tracks(shares), measured_tracks(self._measured)):
            tracks |= more_tracks
            labels |= more_labels
        return Record(header, tracks | self._step_tracks(), labels)

    def _step_tracks(self) -> dict[str, Track]:
        if not self._steps:
            return {}
        steps = np.array([step for step, _ in self._steps], dtype=np.int64)
        tracks = {key: Track(steps, np.array([row[key] for _, row in self._steps])) for key in self._steps[0][1]}
        size = self._config.training.global_batch_size
        ids_SG = tracks["batch"].values[:, None] * size + np.arange(size)
        table = {"id": ids_SG} | sample_table(self._samples, ids_SG)
        return tracks | {f"samples.{key}": Track(steps, values) for key, values in table.items()}


def part_names(name: str, parameter: nn.Parameter) -> list[str]:
    """Names of the projections packed in a parameter, as `layers.0.attention.qkv.q.weight`; else its own name."""
    blocks = _sharding(parameter).blocks
    if len(blocks) < 2:
        return [name]
    owner, _, leaf = name.rpartition(".")
    return [f"{owner}.{block}.{leaf}" for block, _ in blocks]


def _sharding(parameter: nn.Parameter) -> Sharding:
    return parameter.sharding  # type: ignore[attr-defined]  # parallel.linear marks every parameter


def _place(topology: Topology) -> Place:
    return Place(
        rank=topology.rank,
        host=socket.gethostname(),
        device=torch.cuda.get_device_name(topology.device) if topology.device.type == "cuda" else "cpu",
        tp=topology.tensor.rank,
        pp=topology.pp_rank,
        dp=topology.dp_rank,
    )


def _all(mine: Place, topology: Topology) -> list[Place]:
    """The object of every rank, on every rank."""
    if topology.world_size == 1:
        return [mine]
    places: list[Any] = [None] * topology.world_size
    dist.all_gather_object(places, mine)
    return places


def _gather(mine: Share, topology: Topology) -> list[Share] | None:
    """The object of every rank, on the logging rank."""
    if topology.world_size == 1:
        return [mine]
    shares: list[Any] | None = [None] * topology.world_size if topology.is_logging_rank else None
    dist.gather_object(mine, shares, dst=0)
    return shares


def _random_state(device: torch.device) -> str:
    hashed = hashlib.blake2b(torch.get_rng_state().numpy().tobytes(), digest_size=16)
    if device.type == "cuda":
        hashed.update(torch.cuda.get_rng_state(device).numpy().tobytes())
    return hashed.hexdigest()


def _versions() -> dict[str, str]:
    versions = {"python": platform.python_version(), **{name: version(name) for name in PACKAGES}}
    return versions | ({"cuda": torch.version.cuda} if torch.version.cuda else {})
