"""How a rank's tensor is a part of the whole model's, and the whole tensors under their global names.

A column-parallel weight stacks several projections, and each rank holds its share of every one: the whole of it is not
one contiguous tensor. Each projection is therefore a tensor of its own, named `<parameter>/<projection>`, sharded over
the tensor-parallel group as a `DTensor`. Names and shapes are the same in every layout.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Shard

from parallel.topology import TensorParallel


@dataclass(frozen=True)
class Sharding:
    """`dim`: the dimension that ranks share, None if each holds the whole; `blocks`: names and this rank's sizes of the
    parts stacked along it (none: one part)."""

    dim: int | None = None
    blocks: tuple[tuple[str, int], ...] = ()


def whole_tensors(
    name: str, local: Tensor, sharding: Sharding, mesh: DeviceMesh | None
) -> Iterator[tuple[str, Tensor]]:
    """(global name, tensor) of a rank's tensor: views of it, as DTensors where ranks share them."""
    if sharding.dim is None or not sharding.blocks:
        yield name, _shared(local, sharding.dim, mesh)
        return
    parts = local.split([size for _, size in sharding.blocks], sharding.dim)
    for (block, _), part in zip(sharding.blocks, parts, strict=True):
        yield f"{name}/{block}", _shared(part, sharding.dim, mesh)


def tensor_mesh(tp: TensorParallel, device_type: str) -> DeviceMesh | None:
    """The tensor-parallel group as a mesh; None for a group of one."""
    return DeviceMesh.from_group(tp.group, device_type) if tp.size > 1 and tp.group is not None else None


def _shared(local: Tensor, dim: int | None, mesh: DeviceMesh | None) -> Tensor:
    if dim is None or mesh is None:
        return local
    return DTensor.from_local(local, mesh, [Shard(dim)], run_check=False)
