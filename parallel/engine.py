"""DeepSpeed behind one small class: data-parallel reduction, ZeRO-1/2, clipping and the optimizer step."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from configs.schema import OptimizerConfig, ParallelConfig
from parallel.quiet import deepspeed
from parallel.topology import Topology

REDUCE_BUCKET = 50_000_000
"""Numbers reduced at a time: a buffer of 200 MB every step. DeepSpeed's default would be one of 2 GB on every rank."""


class Engine:
    """One optimizer step per `accumulate` block: gradients stay local inside it and are reduced when it ends."""

    def __init__(
        self,
        modules: nn.Module,
        optimizer: torch.optim.Optimizer,
        topology: Topology,
        parallel: ParallelConfig,
        config: OptimizerConfig,
    ) -> None:
        self._topology = topology
        self._assert_equal_group_counts(optimizer)
        self._engine, self._optimizer, _, _ = deepspeed(topology.device.type).initialize(
            model=modules,
            optimizer=optimizer,
            mpu=_ModelParallelUnit(topology),
            dist_init_required=False,
            config={
                "train_micro_batch_size_per_gpu": 1,
                "gradient_accumulation_steps": 1,
                "gradient_clipping": config.clip,
                "zero_optimization": {
                    "stage": parallel.zero_stage,
                    "overlap_comm": False,
                    "reduce_bucket_size": REDUCE_BUCKET,
                },
                "zero_allow_untested_optimizer": True,
            },
        )

        self._make_moments()

    @contextmanager
    def accumulate(self) -> Iterator[None]:
        """Gradients of any number of backward passes pile up in `parameter.grad`; leaving averages them over dp.

        Left by an exception, it reduces nothing: the step is lost, and DeepSpeed would reduce what gradients there
        are, against those of ranks that have others or never come.
        """
        with self._engine.coalesce_grad_reduction():
            try:
                yield
            except BaseException:
                self._engine.module.zero_grad(set_to_none=True)
                raise

    def step(self, lr: float) -> float:
        """Clip by the global norm and update; returns the norm before clipping.

        A norm that is not finite updates nothing and is returned as it is (inf).
        """
        for group in self._optimizer.param_groups:
            group["lr"] = lr
        self._engine.step()
        norm = self._engine.get_global_grad_norm()
        return float(norm)

    MOMENTS = ("exp_avg", "exp_avg_sq")

    def moments(self, parameter: nn.Parameter) -> dict[str, Tensor]:
        """Adam's moments of a parameter, whole on this tensor-parallel rank (shaped like it). Collective over dp."""
        from deepspeed.utils import safe_get_full_optimizer_state

        return {key: safe_get_full_optimizer_state(parameter, key) for key in self.MOMENTS}

    def count_updates(self, updates: int) -> None:
        """Go on as after `updates` optimizer steps: Adam's bias correction depends on their number."""
        for group in self._optimizer.optimizer.param_groups:
            if "step" in group:  # apex's FusedAdam counts per group
                group["step"] = updates
            for flat in group["params"]:
                state = self._optimizer.optimizer.state[flat]
                if "step" in state:
                    state["step"].fill_(updates)

    def _make_moments(self) -> None:
        """Make Adam's state now: left to the first step, DeepSpeed would link the first group's parameters only."""
        for group in self._optimizer.optimizer.param_groups:
            for flat in group["params"]:
                state = self._optimizer.optimizer.state[flat]
                state |= {key: torch.zeros_like(flat) for key in self.MOMENTS}
                if isinstance(self._optimizer.optimizer, torch.optim.AdamW):
                    state["step"] = torch.zeros((), device=flat.device if group["fused"] else "cpu")
        # Private: links each parameter to its fragment of the flat state; `test_state.py` names it.
        self._optimizer._lazy_init_hp_params_optimizer_state()

    def load(self, parameter: nn.Parameter, moments: dict[str, Tensor]) -> None:
        """Take a parameter's value, just written into it, and its moments (whole on every dp rank); no collective."""
        from deepspeed.utils import safe_set_full_fp32_param, safe_set_full_optimizer_state

        safe_set_full_fp32_param(parameter, parameter.detach())
        for key, value in moments.items():
            safe_set_full_optimizer_state(parameter, value, key)

    def _assert_equal_group_counts(self, optimizer: torch.optim.Optimizer) -> None:
        """DeepSpeed reduces the norm once per parameter group over all model ranks: a missing group would hang."""
        count = torch.tensor([len(optimizer.param_groups)], device=self._topology.device)
        least = count.clone()
        dist.all_reduce(least, op=dist.ReduceOp.MIN, group=self._topology.model_group)
        assert least.item() == count.item(), "ranks of one model must have the same number of parameter groups"


class _ModelParallelUnit:
    """What DeepSpeed asks about the grid of ranks. It probes with hasattr: only what is meant to exist is here."""

    def __init__(self, topology: Topology) -> None:
        self._topology = topology

    def get_model_parallel_group(self) -> Any:
        return self._topology.model_group

    def get_model_parallel_world_size(self) -> int:
        return self._topology.tensor.size * self._topology.pp_size

    def get_model_parallel_rank(self) -> int:
        return self._topology.tensor.rank

    def get_data_parallel_group(self) -> Any:
        return self._topology.dp_group

    def get_data_parallel_world_size(self) -> int:
        return self._topology.dp_size

    def get_data_parallel_rank(self) -> int:
        return self._topology.dp_rank

    def get_tensor_model_parallel_rank(self) -> int:
        return self._topology.tensor.rank

    def get_tensor_model_parallel_world_size(self) -> int:
        return self._topology.tensor.size

    def get_tensor_model_parallel_group(self) -> Any:
        return self._topology.tensor.group

    def get_pipeline_model_parallel_world_size(self) -> int:
        return self._topology.pp_size
