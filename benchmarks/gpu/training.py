"""One model on one device, and its training step: the protocol of `training.run` with torch alone.

What DeepSpeed does there (norm, clipping, AdamW on fp32 weights) is done here by torch's own functions, so that no
package has to be installed. With several processes gradients are averaged by one all-reduce per parameter.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from types import SimpleNamespace

import torch
import torch.distributed as dist
from torch import nn

from model.attention import Attention
from model.decoder import Decoder
from model.rotary import RotaryEmbedding
from monitoring.signals import Monitor
from parallel.embedding import count_rows
from parallel.engine import Fragment
from parallel.linear import LinearSpec, ShardedLinear
from parallel.loss import VocabParallelLoss
from parallel.spectral import SpectralReparam
from parallel.topology import TensorParallel, Topology
from training.optimizer import apex_fused_adam


@dataclass(frozen=True)
class Case:
    """One way of training one shape."""

    shape: str
    micro_batch: int
    reparam: str = "none"
    recompute: str = "none"
    compiled: bool = False
    optimizer: str = "fused"
    """`fused` (apex's where it is installed) or `foreach`."""
    measured: bool = False
    """Every signal of monitoring is taken in every step."""
    layers: int | None = None

    def label(self) -> str:
        """What differs from the plain case."""
        parts = [
            "sigmaReparam" if self.reparam == "sigma" else "",
            "compile" if self.compiled else "",
            f"recompute {self.recompute}" if self.recompute != "none" else "",
            f"{self.optimizer} AdamW" if self.optimizer != "fused" else "",
            "every signal measured" if self.measured else "",
        ]
        return ", ".join(part for part in parts if part) or "plain"


class OneProcess:
    """What monitoring asks of `parallel.engine.Engine`, where one process owns everything."""

    def __init__(self, parameters: list[nn.Parameter]) -> None:
        self._parameters = parameters

    def owned(self) -> Iterator[Fragment]:
        """Every parameter whole."""
        for parameter in self._parameters:
            gradient = None if parameter.grad is None else parameter.grad.flatten()
            yield Fragment(parameter, 0, parameter.detach().view(-1), gradient)


class Training:
    """A model, its optimizer and its step on random tokens."""

    def __init__(self, case: Case, device: torch.device) -> None:
        shape = load_shape(case)
        self.case, self.shape, self.device = case, shape, device
        self.tokens = case.micro_batch * shape.length
        self.chunks = [build_decoder(shape, case, device)]
        linears = [(name, m) for name, m in self.chunks[0].named_modules() if isinstance(m, ShardedLinear)]
        self.spectral = SpectralReparam(linears, TensorParallel())
        self.spectral.start(shape.reparam, seed=0)
        self.parameters = list(self.chunks[0].parameters())
        self.engine = OneProcess(self.parameters)
        self._loss = VocabParallelLoss(shape.vocab_size, TensorParallel())
        self._optimizer = build_optimizer(self.parameters, case.optimizer)
        self._monitor = Monitor(self, topology(device), monitored(case, shape)) if case.measured else None
        generator = torch.Generator(device).manual_seed(dist.get_rank())
        size = (case.micro_batch, shape.length + 1)
        window_BT = torch.randint(shape.vocab_size, size, generator=generator, device=device)
        self._tokens_BT, self._targets_BT = window_BT[:, :-1].contiguous(), window_BT[:, 1:].contiguous()

    def attention_layers(self) -> list[tuple[int, Attention]]:
        """(index, attention) of every layer."""
        return self.chunks[0].attention_layers()

    def step(self) -> None:
        """Forward, backward, pull-back, clipping, AdamW, refresh; and the signals where the case asks for them."""
        if self._monitor is None:
            self._forward_backward()
        else:
            with self._monitor.forward(measuring=True):
                self._forward_backward()
        self.spectral.pull_back()
        if dist.get_world_size() > 1:
            for parameter in self.parameters:
                dist.all_reduce(parameter.grad, op=dist.ReduceOp.AVG)
        if self._monitor is not None:
            self._monitor.before_update()
        nn.utils.clip_grad_norm_(self.parameters, 1.0, foreach=True)
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)
        self.spectral.refresh()
        if self._monitor is not None:
            self._monitor.collect()

    def _forward_backward(self) -> None:
        self._loss(self.chunks[0](self._tokens_BT), self._targets_BT).backward()


def load_shape(case: Case) -> SimpleNamespace:
    """The model of a case."""
    from benchmarks.gpu.shapes import load

    return load(case.shape, reparam=case.reparam, layers=case.layers)


def build_decoder(shape: SimpleNamespace, case: Case, device: torch.device) -> Decoder:
    """The decoder with random weights made on the device: which ones makes no difference to the time."""
    spec = LinearSpec(TensorParallel(), 0, torch.bfloat16, torch.float32, shape.reparam.kind == "sigma", shape.bias)
    with torch.device("meta"):
        decoder = Decoder(
            shape,
            spec,
            vocab_size=shape.vocab_size,
            length=shape.length,
            layers=range(shape.layers),
            recompute=case.recompute,
            compiled=case.compiled,
        )
    decoder.to_empty(device=device)
    with torch.no_grad():
        for buffer in decoder.buffers():
            buffer.zero_()
        for name, parameter in decoder.named_parameters():
            if parameter.ndim == 2:
                parameter.normal_(0, shape.init_std)
            else:
                parameter.fill_(0 if name.endswith("bias") else 1)
        for module in decoder.modules():
            if isinstance(module, RotaryEmbedding):
                tables = RotaryEmbedding(shape.head_size, shape.length, shape.rope_theta)
                for name, table in tables.named_buffers():
                    module.get_buffer(name).copy_(table)
    return decoder


def build_optimizer(parameters: list[nn.Parameter], kind: str) -> torch.optim.Optimizer:
    """AdamW: apex's or torch's fused one, or torch's for-each one."""
    groups = [
        {"params": [p for p in parameters if (p.ndim == 2) == decays], "weight_decay": 0.1 * decays}
        for decays in (1, 0)
    ]
    apex = apex_fused_adam() if kind == "fused" and parameters[0].is_cuda else None
    if apex is not None:
        return apex(groups, lr=1e-4, adam_w_mode=True)
    return torch.optim.AdamW(groups, lr=1e-4, fused=kind == "fused", foreach=kind == "foreach")


def topology(device: torch.device) -> Topology:
    """This process as one model replica; the group of all processes stands for every group that nothing asks."""
    world = dist.group.WORLD
    assert world is not None
    return Topology(0, 1, device, TensorParallel(), 0, 1, world, 0, 1, world, world)


def monitored(case: Case, shape: SimpleNamespace) -> SimpleNamespace:
    """The parts of a configuration that monitoring reads."""
    training = SimpleNamespace(sequence_length=shape.length, global_batch_size=case.micro_batch, seed=0)
    return SimpleNamespace(training=training, model=shape)


def rows(shape: SimpleNamespace) -> int:
    """Of the padded vocabulary."""
    return count_rows(shape.vocab_size, shape.vocab_multiple)


def start(device_type: str) -> torch.device:
    """Join the processes that torchrun started, or be alone; this process's device."""
    if "RANK" in os.environ:
        dist.init_process_group("nccl" if device_type == "cuda" else "gloo")
    else:
        dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    if device_type == "cpu":
        return torch.device("cpu")
    device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
    torch.cuda.set_device(device)
    return device
