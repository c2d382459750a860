"""Faults put into the training of this process on purpose, for benchmarks and tests.

Each is a context manager around `training.run.train`; every rank enters it. Steps count from 0, as the loop's do, and
count what this process trains: after a resume they begin with the resumed step.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn

import training.run as loop
from parallel.topology import Topology
from training.batches import Batches
from training.build import Trainer

Change = Callable[[int, Trainer, Topology], None]


@contextmanager
def garbage(batch: int) -> Iterator[None]:
    """The global batch of this index holds bytes drawn at random."""
    take = Batches.step

    def step(self: Batches, index: int) -> tuple[Tensor, Tensor]:
        tokens_BT, targets_BT = take(self, index)
        if index != batch:
            return tokens_BT, targets_BT
        noise = torch.Generator().manual_seed(index)
        return (
            torch.randint(256, tokens_BT.shape, generator=noise),
            torch.randint(256, targets_BT.shape, generator=noise),
        )

    with mock.patch.object(Batches, "step", step):
        yield


@contextmanager
def lr_pulse(step: int, factor: float, steps: int = 1) -> Iterator[None]:
    """The scheduled learning rate of `steps` updates from `step` is multiplied."""
    rate = loop.learning_rate

    def learning_rate(at: int, *rest: Any) -> float:
        return rate(at, *rest) * (factor if step <= at < step + steps else 1.0)

    with mock.patch.object(loop, "learning_rate", learning_rate):
        yield


@contextmanager
def scaled_gradients(step: int, layer: int, factor: float, steps: int = 1) -> Iterator[None]:
    """The gradients of one decoder layer are multiplied, for `steps` steps."""

    def change(at: int, trainer: Trainer, topology: Topology) -> None:
        if step <= at < step + steps:
            for name, parameter in trainer.named_parameters():
                if name.startswith(f"layers.{layer}.") and parameter.grad is not None:
                    parameter.grad.mul_(factor)

    with _after_backward(change):
        yield


@contextmanager
def nan_gradient(step: int, rank: int, parameter: str) -> Iterator[None]:
    """One number of one rank's gradient is not a number, at one step."""

    def change(at: int, trainer: Trainer, topology: Topology) -> None:
        if at == step and topology.rank == rank:
            gradient = dict(trainer.named_parameters())[parameter].grad
            assert gradient is not None
            gradient.view(-1)[0] = torch.nan

    with _after_backward(change):
        yield


@contextmanager
def frozen_head(step: int, layer: int, head: int) -> Iterator[None]:
    """The queries of a head get no gradient from `step` on."""

    def change(at: int, trainer: Trainer, topology: Topology) -> None:
        for index, attention in trainer.attention_layers():
            size = attention.head_size
            heads_here = attention.qkv.blocks["q"] // size
            local = head - topology.tensor.rank * heads_here
            if at >= step and index == layer and 0 <= local < heads_here:
                gradient = attention.qkv.weight.grad
                assert gradient is not None
                gradient[local * size : (local + 1) * size] = 0

    with _after_backward(change):
        yield


@contextmanager
def bit_flip(step: int, tp_rank: int, parameter: str, bit: int = 30) -> Iterator[None]:
    """One bit of one weight flips on one tensor-parallel rank, in the optimizer's copy too.

    Bit 30 is the top of the exponent: a small weight becomes one of about 1e37.
    """

    def change(at: int, trainer: Trainer, topology: Topology) -> None:
        if at == step and topology.tensor.rank == tp_rank:
            weight: nn.Parameter | None = dict(trainer.named_parameters()).get(parameter)
            if weight is not None:  # it is on another pipeline stage
                weight.data.view(-1)[:1].view(torch.int32).bitwise_xor_(1 << bit)
                trainer.engine.load(weight, {})

    with _after_backward(change):
        yield


@contextmanager
def _after_backward(change: Change) -> Iterator[None]:
    """Call `change(step, trainer, topology)` on each rank after its backward passes, when nothing is summed yet."""
    build = loop.build_trainer

    def build_trainer(config: Any, topology: Topology, *rest: Any) -> Trainer:
        trainer = build(config, topology, *rest)
        forward_and_backward = trainer.pipeline.train

        def and_change(tokens_BT: Tensor, targets_BT: Tensor) -> Tensor:
            loss = forward_and_backward(tokens_BT, targets_BT)
            change(seen[0], trainer, topology)
            return loss

        trainer.pipeline.train = and_change  # type: ignore[method-assign]
        return trainer

    rate, seen = loop.learning_rate, [0]

    def learning_rate(at: int, *rest: Any) -> float:
        seen[0] = at  # the loop asks for it at the beginning of each step
        return rate(at, *rest)

    with (
        mock.patch.object(loop, "build_trainer", build_trainer),
        mock.patch.object(loop, "learning_rate", learning_rate),
    ):
        yield
