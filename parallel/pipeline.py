"""Micro-batches through the model: a plain loop on one stage, torch's pipeline schedules on several.

Shapes: B sequences of one data-parallel rank, T sequence, D features.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed import pipelining

from configs.schema import SINGLE_STAGE, ParallelConfig
from parallel.stage import Stage
from parallel.topology import Topology

SCHEDULES: dict[str, Any] = {
    "gpipe": pipelining.ScheduleGPipe,
    "1f1b": pipelining.Schedule1F1B,
    "interleaved_1f1b": pipelining.ScheduleInterleaved1F1B,
    "interleaved_zero_bubble": pipelining.ScheduleInterleavedZeroBubble,
    "zbv": pipelining.ScheduleZBVZeroBubble,
}
V_SHAPED = {"zbv"}

Loss = Callable[[Tensor, Tensor], Tensor]


def stage_indices(config: ParallelConfig, pp_rank: int) -> list[int]:
    """The model chunks of a pipeline rank, in model order: a loop (r, r + pp, ...), or a V (r, 2 pp - 1 - r)."""
    if config.schedule in V_SHAPED and config.pp > 1:
        return [pp_rank, 2 * config.pp - 1 - pp_rank]
    return [pp_rank + chunk * config.pp for chunk in range(config.chunks)]


def stage_layers(layers: int, stages: int, stage: int) -> range:
    """The decoder layers of a stage; stages are equally deep."""
    assert layers % stages == 0
    depth = layers // stages
    return range(stage * depth, (stage + 1) * depth)


class Pipeline:
    """Runs a batch forward and backward (`train`) or forward (`evaluate`) and returns the mean loss.

    The loss lives on the rank with the last stage; elsewhere the result is 0. `Pipeline.holds_loss` tells which.
    """

    def __init__(
        self,
        chunks: Sequence[nn.Module],
        loss: Loss,
        evaluation_loss: Loss,
        topology: Topology,
        config: ParallelConfig,
        *,
        micro_batches: int,
        hidden_shape: tuple[int, ...],
        logits_shape: tuple[int, ...],
        dtype: torch.dtype,
    ) -> None:
        """`loss` and `evaluation_loss` give the mean of one micro-batch from (logits, targets).

        `hidden_shape`, `logits_shape`: of one micro-batch, on this rank, between stages and after the last.
        """
        self.chunks = chunks
        self.loss = loss
        self.evaluation_loss = evaluation_loss
        self.topology = topology
        self.micro_batches = micro_batches
        self._hidden_shape, self._dtype = hidden_shape, dtype
        self._stages = stage_indices(config, topology.pp_rank)
        self._last_stage = config.pp * config.chunks - 1
        self._rank_of = {stage: rank for rank in range(config.pp) for stage in stage_indices(config, rank)}
        self.holds_loss = self._last_stage in self._stages
        self._schedule = self._build_schedule(config, logits_shape) if topology.pp_size > 1 else None

    def _build_schedule(self, config: ParallelConfig, logits_shape: tuple[int, ...]) -> Any:
        """Torch's schedule over this rank's stages. All shapes are given, so that nothing is run to infer them."""
        tokens_shape = (self._hidden_shape[0], logits_shape[1])
        pipeline_stages = []
        for index, chunk in zip(self._stages, self.chunks, strict=True):
            hidden = torch.empty(self._hidden_shape, dtype=self._dtype, device="meta", requires_grad=True)
            tokens = torch.empty(tokens_shape, dtype=torch.long, device="meta")
            logits = torch.empty(logits_shape, dtype=self._dtype, device="meta", requires_grad=True)
            stage = Stage(
                chunk,
                index,
                self._last_stage + 1,
                self.topology.device,
                input_args=tokens if index == 0 else hidden,
                output_args=logits if index == self._last_stage else hidden,
                group=self.topology.pp_group,
            )
            stage.clock = self.topology.clock
            pipeline_stages.append(stage)
        single = config.schedule in SINGLE_STAGE
        return SCHEDULES[config.schedule](
            pipeline_stages[0] if single else pipeline_stages,
            self.micro_batches,
            loss_fn=self._scaled_loss,
            scale_grads=False,
        )

    def train(self, tokens_BT: Tensor, targets_BT: Tensor) -> Tensor:
        """Forward and backward of all micro-batches; gradients add up in the parameters."""
        if self._schedule is not None:
            return self._run_schedule(tokens_BT, targets_BT)
        total = torch.zeros((), device=self.topology.device)
        for tokens, targets in self._split(tokens_BT, targets_BT):
            with self.topology.clock.part("forward"):
                loss = self._scaled_loss(self.chunks[0](tokens), targets)
            with self.topology.clock.part("backward"):
                loss.backward()
            total += loss.detach()
        return total

    @torch.no_grad()
    def evaluate(self, tokens_BT: Tensor, targets_BT: Tensor) -> Tensor:
        """Forward of all micro-batches, stage by stage, the same way for every schedule.

        (torch's zero-bubble schedules have no forward-only mode: their backward actions run all the same.)
        """
        total = torch.zeros((), device=self.topology.device)
        for tokens, targets in self._split(tokens_BT, targets_BT):
            x = tokens
            for stage, chunk in zip(self._stages, self.chunks, strict=True):
                x = chunk(x if stage == 0 else self._receive(stage, x))
                if stage == self._last_stage:
                    total += self.evaluation_loss(x, targets) / self.micro_batches
                else:
                    self._send(stage, x)
        return total

    def _receive(self, stage: int, local: Tensor) -> Tensor:
        """The output of the stage before: `local` if this rank ran it, else from its rank."""
        source = self._rank_of[stage - 1]
        if source == self.topology.pp_rank:
            return local
        hidden = torch.empty(self._hidden_shape, dtype=self._dtype, device=self.topology.device)
        dist.recv(hidden, group=self.topology.pp_group, group_src=source)
        return hidden

    def _send(self, stage: int, output: Tensor) -> None:
        target = self._rank_of[stage + 1]
        if target != self.topology.pp_rank:
            dist.send(output.contiguous(), group=self.topology.pp_group, group_dst=target)

    def _scaled_loss(self, logits: Tensor, targets: Tensor) -> Tensor:
        """A micro-batch's share of the batch's mean loss."""
        with self.topology.clock.part("forward"):
            return self.loss(logits, targets) / self.micro_batches

    def _split(self, tokens_BT: Tensor, targets_BT: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        return zip(tokens_BT.chunk(self.micro_batches), targets_BT.chunk(self.micro_batches), strict=True)

    def _run_schedule(self, tokens_BT: Tensor, targets_BT: Tensor) -> Tensor:
        assert self._schedule is not None
        losses: list[Tensor] = []
        inputs = (tokens_BT,) if 0 in self._stages else ()
        targets = targets_BT if self.holds_loss else None
        with self.topology.clock.part("pipeline_wait"):  # what its stages do not take
            self._schedule.step(*inputs, target=targets, losses=losses, return_outputs=False)
        if not self.holds_loss:
            return torch.zeros((), device=self.topology.device)
        # A copy: schedules may change the losses they handed out.
        return torch.stack([loss.detach().clone() for loss in losses]).sum()
