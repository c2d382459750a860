"""All contenders of a task built in the same ranks and timed in turn, one step of each."""

from collections.abc import Callable

import torch.distributed as dist

from benchmarks.harness import Timing, interleave
from benchmarks.peers.llama import LlamaLoop
from benchmarks.peers.megatron import MegatronLoop
from benchmarks.peers.ours import Ours, config_of
from benchmarks.peers.plain_gpt import PlainLoop
from benchmarks.peers.task import Contender, Task
from parallel import topology as topologies
from parallel.topology import Topology

OURS = ("ours", "ours-sigma")
BUILD: dict[str, Callable[[Task, Topology], Contender]] = {
    "ours": Ours,
    "ours-sigma": lambda task, topology: Ours(task, topology, "sigma"),
    "plain-gpt": lambda task, _: PlainLoop(task),
    "megatron-core": MegatronLoop,
    "hf-llama": lambda task, _: LlamaLoop(task),
}
SIZE_BOUND = 0.01
"""How far the numbers of parameters of what is compared may lie apart."""


def names_of(task: Task) -> tuple[str, ...]:
    """Who takes part: of the peers, megatron-core alone splits a model over processes."""
    if task.family == "llama":
        return (*OURS, "hf-llama")
    return (*OURS, "plain-gpt", "megatron-core") if task.tp * task.pp == 1 else (*OURS, "megatron-core")


def hold(task: Task, repeats: int) -> tuple[dict[str, Timing], dict[str, int], dict[str, float]]:
    """Timings, parameters and losses of the first step of each; runs on every rank of the task's layout.

    With several ranks a step ends when all have ended it.
    """
    topology = join(task)
    contenders = {name: BUILD[name](task, topology) for name in names_of(task)}
    parameters = {name: contender.parameters() for name, contender in contenders.items()}
    assert max(parameters.values()) <= (1 + SIZE_BOUND) * min(parameters.values()), f"models differ: {parameters}"
    losses = {name: contender.step() for name, contender in contenders.items()}
    timings = interleave({name: _together(contender) for name, contender in contenders.items()}, repeats, warmup=2)
    return timings, parameters, losses


def join(task: Task) -> Topology:
    """This rank's place in the task's layout."""
    return topologies.start(config_of(task, "none").parallel, "cpu")


def _together(contender: Contender) -> Callable[[], None]:
    def step() -> None:
        contender.step()
        if dist.get_world_size() > 1:
            dist.barrier()

    return step
