"""Everything a resumed run needs, as tensors under global names: the same names and shapes in every layout.

    model/<parameter>           W, gamma, norms, biases, embeddings
    spectral/<layer>/...        u, v and sigma of each reparametrised layer
    exp_avg/<parameter>, exp_avg_sq/<parameter>   Adam's moments

The step is the only other state: data order and learning rate are functions of it.
"""

import torch
from torch import Tensor

from parallel.linear import ShardedLinear
from parallel.sharding import tensor_mesh, whole_tensors
from parallel.topology import Topology
from training.build import Trainer


class TrainingState:
    """The tensors of one rank's trainer, to write out or to fill."""

    def __init__(self, trainer: Trainer, topology: Topology) -> None:
        self._trainer, self._topology = trainer, topology
        self._mesh = tensor_mesh(topology.tensor, topology.device.type)

    def to_save(self) -> dict[str, Tensor]:
        """This rank's share of every tensor; collective.

        Moments are gathered over data-parallel ranks one parameter at a time and each rank keeps those of every dp-th
        parameter: no rank holds more than its share of a second copy.
        """
        tensors = self._weights()
        for index, (name, parameter) in enumerate(self._trainer.named_parameters()):
            moments = self._trainer.engine.moments(parameter)
            if index % self._topology.dp_size == self._topology.dp_rank:
                for key, moment in moments.items():
                    tensors |= whole_tensors(f"{key}/{name}", moment, parameter.sharding, self._mesh)
        return tensors

    def to_load(self) -> dict[str, Tensor]:
        """Tensors to be filled in place; then call `loaded`."""
        self._moments = {
            name: {key: torch.zeros_like(parameter.detach()) for key in self._trainer.engine.MOMENTS}
            for name, parameter in self._trainer.named_parameters()
        }
        tensors = self._weights()
        for name, parameter in self._trainer.named_parameters():
            for key, moment in self._moments[name].items():
                tensors |= whole_tensors(f"{key}/{name}", moment, parameter.sharding, self._mesh)
        return tensors

    def loaded(self, updates: int) -> None:
        """Go on as after `updates` optimizer steps with what was filled into `to_load`'s tensors."""
        engine = self._trainer.engine
        engine.count_updates(updates)
        for name, parameter in self._trainer.named_parameters():
            engine.load(parameter, self._moments[name])
        del self._moments
        self._trainer.spectral.restore()

    def _weights(self) -> dict[str, Tensor]:
        tensors: dict[str, Tensor] = {}
        for name, parameter in self._trainer.named_parameters():
            tensors |= whole_tensors(f"model/{name}", parameter.detach(), parameter.sharding, self._mesh)
        for chunk in self._trainer.chunks:
            for name, layer in chunk.named_modules():
                if isinstance(layer, ShardedLinear):
                    for key, tensor, sharding in layer.spectral_state():
                        tensors |= whole_tensors(f"spectral/{name}/{key}", tensor, sharding, self._mesh)
        return tensors
