"""Everything a resumed run needs, as tensors under global names: the same names and shapes in every layout.

    model/<parameter>           W, gamma, norms, biases, embeddings
    spectral/<layer>/...        u, v and sigma of each reparametrised layer
    exp_avg/<parameter>, exp_avg_sq/<parameter>   Adam's moments

The step is the only other state: data order and learning rate are functions of it.
"""

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from parallel.linear import ShardedLinear
from parallel.sharding import Sharding, tensor_mesh, whole_tensors
from parallel.topology import Topology
from training.build import Trainer


class TrainingState:
    """The tensors of one rank's trainer, to write out or to fill."""

    def __init__(self, trainer: Trainer, topology: Topology) -> None:
        self._trainer, self._topology = trainer, topology

    def to_save(self) -> dict[str, Tensor]:
        """Copies, on the CPU, of this rank's share of every tensor; collective.

        Moments are gathered over data-parallel ranks one parameter at a time and each rank keeps those of every dp-th
        parameter: no rank holds more than its share of a second copy.
        """
        mesh = tensor_mesh(self._topology.tensor, "cpu")
        tensors: dict[str, Tensor] = {}
        for name, tensor, sharding in self._weights():
            tensors |= whole_tensors(name, _copy(tensor), sharding, mesh)
        for index, (name, parameter) in enumerate(self._trainer.named_parameters()):
            moments = self._trainer.engine.moments(parameter)
            if index % self._topology.dp_size == self._topology.dp_rank:
                for key, moment in moments.items():
                    tensors |= whole_tensors(f"{key}/{name}", _copy(moment), _sharding(parameter), mesh)
        return tensors

    def to_load(self) -> dict[str, Tensor]:
        """Tensors to be filled in place; then call `loaded`."""
        self._moments = {
            name: {key: torch.zeros_like(parameter.detach()) for key in self._trainer.engine.MOMENTS}
            for name, parameter in self._trainer.named_parameters()
        }
        mesh = tensor_mesh(self._topology.tensor, self._topology.device.type)
        tensors: dict[str, Tensor] = {}
        for name, tensor, sharding in self._weights():
            tensors |= whole_tensors(name, tensor, sharding, mesh)
        for name, parameter in self._trainer.named_parameters():
            for key, moment in self._moments[name].items():
                tensors |= whole_tensors(f"{key}/{name}", moment, _sharding(parameter), mesh)
        return tensors

    def loaded(self, updates: int) -> None:
        """Go on as after `updates` optimizer steps with what was filled into `to_load`'s tensors."""
        engine = self._trainer.engine
        engine.count_updates(updates)
        for name, parameter in self._trainer.named_parameters():
            engine.load(parameter, self._moments[name])
        del self._moments
        self._trainer.spectral.restore()

    def _weights(self) -> Iterator[tuple[str, Tensor, Sharding]]:
        for name, parameter in self._trainer.named_parameters():
            yield f"model/{name}", parameter.detach(), _sharding(parameter)
        for chunk in self._trainer.chunks:
            for name, layer in chunk.named_modules():
                if isinstance(layer, ShardedLinear):
                    for key, tensor, sharding in layer.spectral_state():
                        yield f"spectral/{name}/{key}", tensor, sharding


def _copy(tensor: Tensor) -> Tensor:
    return tensor.detach().to("cpu", copy=True)


def _sharding(parameter: nn.Parameter) -> Sharding:
    return parameter.sharding  # type: ignore[attr-defined]
