"""Everything a resumed run needs, as tensors under global names: the same names and shapes in every layout.

    model/<parameter>           W, gamma, norms, biases, embeddings
    spectral/<layer>/...        u, v and sigma of each reparametrised layer; of a plain one, where monitoring's power
                                iteration stands
    <moment>/<parameter>        what the optimizer keeps of it: Adam's exp_avg and exp_avg_sq, Muon's momentum

The step is the only other state: data order and learning rate are functions of it.
"""

from collections.abc import Iterable, Iterator
from itertools import chain

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh

from parallel.linear import ShardedLinear
from parallel.sharding import Sharding, tensor_mesh, whole_tensors
from parallel.topology import Topology
from training.build import Trainer


class TrainingState:
    """The tensors of one rank's trainer, to write out or to fill."""

    def __init__(self, trainer: Trainer, topology: Topology) -> None:
        self._trainer, self._topology = trainer, topology
        self._copies: dict[str, Tensor] = {}
        self._meshes: dict[str, DeviceMesh | None] = {}

    def to_save(self) -> dict[str, Tensor]:
        """This rank's share of every tensor as it is, to be written before training goes on; collective.

        Only moments that data-parallel ranks share are copies: gathered one parameter at a time, each rank keeping
        those of every dp-th, on the CPU. No rank holds more than its share of a second copy.
        """
        tensors: dict[str, Tensor] = {}
        for name, tensor, sharding in self._weights():
            tensors |= whole_tensors(name, tensor, sharding, self._mesh(tensor))
        for name, moment, sharding in self._share_of_moments():
            kept = moment if self._topology.dp_size == 1 else moment.cpu()
            tensors |= whole_tensors(name, kept, sharding, self._mesh(kept))
        return tensors

    def copy_to_save(self) -> dict[str, Tensor]:
        """Copies of the same in host memory: training may go on. The next call writes over them; collective.

        Their memory is kept: to touch it for the first time takes several times as long as the copy.
        """
        tensors: dict[str, Tensor] = {}
        for name, tensor, sharding in chain(self._weights(), self._share_of_moments()):
            copy = self._copy(name, tensor)
            tensors |= whole_tensors(name, copy, sharding, self._mesh(copy))
        if self._topology.device.type == "cuda":
            torch.cuda.current_stream().synchronize()
        return tensors

    def to_load(self) -> dict[str, Tensor]:
        """Tensors to be filled in place; then call `loaded`."""
        self._moments = {
            name: {key: torch.zeros_like(parameter.detach()) for key in self._trainer.engine.moment_keys(parameter)}
            for name, parameter in self._trainer.named_parameters()
        }
        tensors: dict[str, Tensor] = {}
        for name, tensor, sharding in self._weights():
            tensors |= whole_tensors(name, tensor, sharding, self._mesh(tensor))
        for name, parameter in self._trainer.named_parameters():
            for key, moment in self._moments[name].items():
                tensors |= whole_tensors(f"{key}/{name}", moment, _sharding(parameter), self._mesh(moment))
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
                        yield f"spectral/{name}/{key}", tensor.detach(), sharding

    def _share_of_moments(self) -> Iterator[tuple[str, Tensor, Sharding]]:
        """The moments this rank is to write; collective, and each is let go before the next is gathered."""
        for index, (name, parameter) in enumerate(self._trainer.named_parameters()):
            if self._topology.dp_size == 1:
                moments = _own_moments(parameter, self._trainer.engine.moment_keys(parameter))
            else:
                moments = self._trainer.engine.moments(parameter)
            if index % self._topology.dp_size == self._topology.dp_rank:
                for key, moment in moments.items():
                    yield f"{key}/{name}", moment, _sharding(parameter)

    def _copy(self, name: str, tensor: Tensor) -> Tensor:
        """In host memory; pinned and not yet complete if the tensor is on a GPU."""
        if name not in self._copies:
            self._copies[name] = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=tensor.is_cuda)
        return self._copies[name].copy_(tensor, non_blocking=True)

    def _mesh(self, tensor: Tensor) -> DeviceMesh | None:
        """The tensor-parallel group, for tensors on that one's kind of device."""
        kind = tensor.device.type
        if kind not in self._meshes:
            self._meshes[kind] = tensor_mesh(self._topology.tensor, kind)
        return self._meshes[kind]


def _own_moments(parameter: nn.Parameter, keys: Iterable[str]) -> dict[str, Tensor]:
    """The moments where no other rank holds a part of them: DeepSpeed's own, which its getter would copy."""
    fragment = parameter._hp_mapping  # type: ignore[attr-defined]
    return {key: fragment.get_optim_state_fragment(key).view_as(parameter) for key in keys}


def _sharding(parameter: nn.Parameter) -> Sharding:
    return parameter.sharding  # type: ignore[attr-defined]
