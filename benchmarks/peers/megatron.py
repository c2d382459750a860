"""megatron-core's GPTModel with its local layers, its schedules, its gradient buffers and its optimizer.

On a CPU there is no Transformer Engine and no fused kernel; `cpu_for_cuda` says what else is given in CUDA's place.
Attention is megatron-core's own `DotProductAttention`, the only one its local layers have, which keeps the whole T x T
scores; the optimizer is the one it takes without apex, torch's AdamW.

Shapes: B batch, T sequence.
"""

import os
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.peers.cpu_for_cuda import cpu_for_cuda
from benchmarks.peers.task import BETAS, CLIP, EPSILON, LEARNING_RATE, WEIGHT_DECAY, Task, TokenArray
from parallel.topology import Topology
from training.reductions import count_parameters


class MegatronLoop:
    """`topology`: megatron-core's process groups must be started for the task's layout."""

    def __init__(self, task: Task, topology: Topology) -> None:
        self._task, self._topology = task, topology
        self._tokens = TokenArray(task)
        self._position_T = torch.arange(task.length)
        self._future_11TT = torch.ones(1, 1, task.length, task.length, dtype=torch.bool).triu(1)
        self._micro_batches = task.batch // task.micro_batch
        with cpu_for_cuda(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of Transformer Engine, apex and fused kernels that are not there
            self._model, self._optimizer = _build(task, topology)
            self._schedule = _schedule()
        self._step = 0

    @property
    def model(self) -> nn.Module:
        """This rank's stage, unwrapped."""
        model: Any = self._model.module
        return model.module if self._task.precision == "bf16" else model

    def step(self) -> float:
        """One step of training; see `Contender`."""
        tokens_BT, targets_BT = self._tokens.batch(self._step)
        with cpu_for_cuda():
            self._model.zero_grad_buffer()
            self._optimizer.zero_grad()
            losses = self._schedule(
                forward_step_func=self._forward,
                data_iterator=self._split(tokens_BT, targets_BT),
                model=[self._model],
                num_microbatches=self._micro_batches,
                seq_length=self._task.length,
                micro_batch_size=self._task.micro_batch,
            )
            self._optimizer.step()
        self._step += 1
        return sum(part["loss"].item() for part in losses) / self._micro_batches

    def parameters(self) -> int:
        """Parameters of the whole model."""
        for parameter in self._model.parameters():
            parameter.model_parallel = getattr(parameter, "tensor_model_parallel", False) or (
                self._topology.tensor.rank == 0
            )
        return count_parameters(self._model.parameters(), self._topology)

    def _forward(self, batches: Iterator[tuple[Tensor, Tensor]], model: nn.Module) -> tuple[Tensor, Any]:
        """What the schedules call for each micro-batch: this stage's output, and what makes the loss of it."""
        tokens_BT, targets_BT = next(batches)
        position_BT = self._position_T.expand_as(tokens_BT)
        return model(tokens_BT, position_BT, self._future_11TT, labels=targets_BT), _mean

    def _split(self, tokens_BT: Tensor, targets_BT: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        return zip(tokens_BT.chunk(self._micro_batches), targets_BT.chunk(self._micro_batches), strict=True)


def _mean(losses_BT: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    loss = losses_BT.float().mean()
    return loss, {"loss": loss.detach().clone()}  # the schedules divide the loss in place


def _schedule() -> Callable[..., Any]:
    from megatron.core.pipeline_parallel import get_forward_backward_func

    return get_forward_backward_func()


def _build(task: Task, topology: Topology) -> tuple[nn.Module, Any]:
    from megatron.core.distributed import DistributedDataParallel, DistributedDataParallelConfig, finalize_model_grads
    from megatron.core.models.gpt import GPTModel
    from megatron.core.models.gpt.gpt_layer_specs import get_gpt_layer_local_spec
    from megatron.core.optimizer import OptimizerConfig, get_megatron_optimizer
    from megatron.core.tensor_parallel import model_parallel_cuda_manual_seed
    from megatron.core.transformer import TransformerConfig
    from megatron.core.transformer.module import Float16Module

    bf16 = task.precision == "bf16"
    os.environ.setdefault("CUDA_DEVICE_MAX_CONNECTIONS", "1")  # it asks for it, on a CPU too
    # The tracker that forks no CUDA generator: nothing here is random, dropout is 0.
    model_parallel_cuda_manual_seed(task.seed + 1, inference_rng_tracker=True)
    config = TransformerConfig(
        num_layers=task.layers,
        hidden_size=task.width,
        num_attention_heads=task.heads,
        ffn_hidden_size=task.inner,
        hidden_dropout=0.0,
        attention_dropout=0.0,
        add_bias_linear=False,
        tensor_model_parallel_size=task.tp,
        pipeline_model_parallel_size=task.pp,
        pipeline_dtype=torch.bfloat16 if bf16 else torch.float32,
        params_dtype=torch.bfloat16 if bf16 else torch.float32,
        bf16=bf16,
        use_cpu_initialization=True,
        gradient_accumulation_fusion=False,
        masked_softmax_fusion=False,
        attention_softmax_in_fp32=bf16,
    )
    model: nn.Module = GPTModel(
        config,
        get_gpt_layer_local_spec(),
        vocab_size=task.vocabulary,
        max_sequence_length=task.length,
        pre_process=topology.pp_rank == 0,
        post_process=topology.pp_rank == topology.pp_size - 1,
        share_embeddings_and_output_weights=False,
    )
    if bf16:
        model = Float16Module(config, model)
    wrapped = DistributedDataParallel(config, DistributedDataParallelConfig(grad_reduce_in_fp32=True), model)
    config.finalize_model_grads_func = finalize_model_grads
    config.no_sync_func = wrapped.no_sync
    optimizer = get_megatron_optimizer(
        OptimizerConfig(
            lr=LEARNING_RATE,
            weight_decay=WEIGHT_DECAY,
            adam_beta1=BETAS[0],
            adam_beta2=BETAS[1],
            adam_eps=EPSILON,
            clip_grad=CLIP,
            bf16=bf16,
            params_dtype=torch.bfloat16 if bf16 else torch.float32,
        ),
        [wrapped],
        use_gloo_process_groups=False,
    )
    config.grad_scale_func = optimizer.scale_loss
    return wrapped, optimizer
