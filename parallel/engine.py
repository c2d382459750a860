"""DeepSpeed behind one small class: data-parallel reduction, ZeRO-1/2, clipping and the optimizer step."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from parallel.clock import Part
from parallel.optimizers import adam
from parallel.optimizers.fragments import FragmentOptimizer, Held
from parallel.quiet import deepspeed
from parallel.topology import Topology

if TYPE_CHECKING:
    from configs.schema import ParallelConfig

REDUCE_BUCKET = 50_000_000
"""Numbers reduced at a time: a buffer of 200 MB every step. DeepSpeed's default would be one of 2 GB on every rank."""


class Treatment(Protocol):
    """What is to become of a step's gradients."""

    @property
    def grad_norm(self) -> float:
        """Their norm as it was given; with one that is not finite nothing is updated."""

    @property
    def keep(self) -> bool:
        """Whether the update is made at all."""

    @property
    def scale(self) -> Tensor | None:
        """What the gradients are divided by (on their device); None: nothing."""


Judgement = TypeVar("Judgement", bound=Treatment)


@dataclass(frozen=True)
class Fragment:
    """A contiguous part of a parameter, flattened, that one data-parallel rank owns."""

    parameter: nn.Parameter
    first: int
    """Index of its first number in the flattened parameter."""
    weight: Tensor
    """The fp32 weights that the optimizer updates; a view."""
    gradient: Tensor | None
    """Mean over data-parallel ranks; there between the end of `accumulate` and `step`, else None."""


class Engine:
    """One optimizer step per `accumulate` block: gradients stay local inside it and are reduced when it ends."""

    def __init__(
        self,
        modules: nn.Module,
        optimizer: torch.optim.Optimizer,
        topology: Topology,
        parallel: ParallelConfig,
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
                "gradient_clipping": 0.0,  # `step` judges
                "zero_optimization": {
                    "stage": parallel.zero_stage,
                    "overlap_comm": False,
                    "reduce_bucket_size": REDUCE_BUCKET,
                    "compute_grad_norm": False,  # `_norm`: DeepSpeed would read its own, an extra wait for the device
                },
                "zero_allow_untested_optimizer": True,
            },
        )
        self._treatment: Treatment | None = None
        self._take_over_clipping()
        self._update_in_place()
        if topology.dp_size == 1:
            self._skip_reduction()
        if isinstance(optimizer, FragmentOptimizer):
            self._hand_out_fragments(optimizer)
        else:
            self._make_moments()

    @contextmanager
    def accumulate(self) -> Iterator[None]:
        """Gradients of any number of backward passes pile up in `parameter.grad`; leaving averages them over dp.

        Left by an exception, it reduces nothing: the step is lost, and DeepSpeed would reduce what gradients there
        are, against those of ranks that have others or never come.
        """
        clock = self._topology.clock
        with clock.part(self._reducing), self._engine.coalesce_grad_reduction(), clock.part("other"):
            try:
                yield
            except BaseException:
                self._engine.module.zero_grad(set_to_none=True)
                raise

    def step(self, lr: float, judge: Callable[[Tensor], Judgement]) -> Judgement:
        """Update with the averaged gradients as `judge` says, given their global norm; returns its judgement.

        `judge` is called once, on every rank with the same norm, on the gradients' device. A norm that is not finite
        (it is then given inf) updates nothing, whatever the judgement.
        """
        for group in self._optimizer.param_groups:
            group["lr"] = lr
        with self._topology.clock.part("optimizer"):
            judged = judge(self._norm())
            self._treatment = judged
            self._engine.step()
        self._treatment = None
        return judged

    def owned(self) -> Iterator[Fragment]:
        """What this data-parallel rank owns of its parameters: ranks own disjoint fragments that cover all of them."""
        for group in self._optimizer.bit16_groups:
            for parameter in group:
                fragment = parameter._hp_mapping  # None where other ranks own all of it
                if fragment is not None:
                    first = fragment.lp_fragment_address.start
                    yield Fragment(parameter, first, fragment.hp_fragment.detach(), self._averaged_gradient(parameter))

    def _averaged_gradient(self, parameter: nn.Parameter) -> Tensor | None:
        fragment = parameter._hp_mapping  # type: ignore[attr-defined]
        gradients = self._optimizer.averaged_gradients.get(fragment.param_group_index)
        if gradients is None:
            return None
        gradient = gradients[parameter._index_in_param_group].flatten()  # type: ignore[attr-defined]
        assert gradient.numel() == fragment.lp_fragment_address.numel, "DeepSpeed keeps gradients of what a rank owns"
        return gradient

    def moment_keys(self, parameter: nn.Parameter) -> tuple[str, ...]:
        """Names of the moments that the optimizer keeps of a parameter."""
        optimizer = self._optimizer.optimizer
        return optimizer.moment_keys(parameter) if isinstance(optimizer, FragmentOptimizer) else adam.MOMENTS

    def moments(self, parameter: nn.Parameter) -> dict[str, Tensor]:
        """The moments of a parameter, whole on this tensor-parallel rank (shaped like it). Collective over dp."""
        from deepspeed.utils import safe_get_full_optimizer_state

        return {key: safe_get_full_optimizer_state(parameter, key) for key in self.moment_keys(parameter)}

    def count_updates(self, updates: int) -> None:
        """Go on as after `updates` optimizer steps: Adam's bias correction depends on their number."""
        for group in self._optimizer.optimizer.param_groups:
            if "step" in group:  # apex's FusedAdam and our own count per group
                group["step"] = updates
            for flat in group["params"]:
                state = self._optimizer.optimizer.state[flat]
                if "step" in state:
                    state["step"].fill_(updates)

    def _make_moments(self) -> None:
        """Make Adam's state now: left to the first step, DeepSpeed would link the first group's parameters only."""
        counts_each = isinstance(self._optimizer.optimizer, torch.optim.AdamW)
        for group in self._optimizer.optimizer.param_groups:
            if not counts_each:  # apex's FusedAdam counts by group, from its first step: a resumed one begins elsewhere
                group["step"] = 0
            for flat in group["params"]:
                state = self._optimizer.optimizer.state[flat]
                state |= {key: torch.zeros_like(flat) for key in adam.MOMENTS}
                if counts_each:
                    state["step"] = torch.zeros((), device=flat.device if group["fused"] else "cpu")
        # Private: links each parameter to its fragment of the flat state; `test_state.py` names it.
        self._optimizer._lazy_init_hp_params_optimizer_state()

    def _hand_out_fragments(self, optimizer: FragmentOptimizer) -> None:
        """Tell an optimizer what its flat tensors hold, and link each parameter to the moments it then keeps."""
        for group, parameters in zip(optimizer.param_groups, self._optimizer.bit16_groups, strict=True):
            (flat,) = group["params"]
            optimizer.hold(flat, [_held(parameter, flat) for parameter in parameters], self._topology)
        self._optimizer._lazy_init_hp_params_optimizer_state()  # links nothing and is done: it would undo ours
        for fragment in optimizer.fragments():
            if fragment.parameter._hp_mapping is not None:  # type: ignore[attr-defined]
                fragment.parameter._hp_mapping.optim_fragment = fragment.moments  # type: ignore[attr-defined]

    def load(self, parameter: nn.Parameter, moments: dict[str, Tensor]) -> None:
        """Take a parameter's value, just written into it, and its moments (whole on every dp rank); no collective."""
        from deepspeed.utils import safe_set_full_fp32_param, safe_set_full_optimizer_state

        safe_set_full_fp32_param(parameter, parameter.detach())
        for key, value in moments.items():
            safe_set_full_optimizer_state(parameter, value, key)

    def _take_over_clipping(self) -> None:
        """Put `step`'s judgement where DeepSpeed clips and updates, once for each group of parameters.

        Both methods are private to its ZeRO-1/2 optimizer: `test_engine.py` names them.
        """
        update = self._optimizer._optimizer_step

        def clip(gradients: list[Tensor], _: None) -> None:
            assert self._treatment is not None, "the optimizer steps only within Engine.step"
            if self._treatment.keep and self._treatment.scale is not None:
                for gradient in gradients:
                    gradient.mul_(1.0 / self._treatment.scale)

        def update_if_kept(group: int) -> None:
            assert self._treatment is not None, "DeepSpeed clips before it updates"
            if self._treatment.keep and math.isfinite(self._treatment.grad_norm):
                update(group)

        self._optimizer.unscale_and_clip_grads = clip
        self._optimizer._optimizer_step = update_if_kept

    def _update_in_place(self) -> None:
        """Let the optimizer update the parameters themselves.

        DeepSpeed clones what a rank owns, for the case that the model is bf16, and copies it back after each update:
        with fp32 parameters that is 4 bytes a number and one more pass over them for nothing.
        """
        zero = self._optimizer
        shares = [parts[self._topology.dp_rank] for parts in zero.parallel_partitioned_bit16_groups]
        for flat, share in zip(zero.single_partition_of_fp32_groups, shares, strict=True):
            assert flat.dtype == share.dtype, "parameters are fp32"
            flat.data = share
        zero._link_all_hp_params()  # private: the parameters' fragments are views of what was replaced

    def _skip_reduction(self) -> None:
        """Without data-parallel ranks nothing is averaged: gradients stay where the backward pass put them.

        DeepSpeed would copy them into its buckets, divide them by 1 and copy them out. Private to its ZeRO-1/2
        optimizer, like the rest: `test_engine.py` names it.
        """
        self._optimizer.reduce_ready_partitions_and_remove_grads = lambda parameter, group: None

    @property
    def _reducing(self) -> Part:
        """What the end of `accumulate` is: without data-parallel ranks only a move of gradients."""
        return "communication" if self._topology.dp_size > 1 else "optimizer"

    def _norm(self) -> Tensor:
        """The gradients' norm over all ranks, each parameter counted once, inf if it is not finite. One all-reduce.

        It stays on the device: who judges it reads it with what else it wants to know.
        """
        own = [
            gradient
            for group, parameters in enumerate(self._optimizer.params_in_partition)
            for parameter, gradient in zip(parameters, self._optimizer.averaged_gradients[group], strict=False)
            if parameter.model_parallel  # what is left over is padding
        ]
        square = torch.zeros((), device=self._topology.device)
        if own:
            square += torch.stack(torch._foreach_norm(own)).square().sum()
        if self._topology.world_size > 1:
            with self._topology.clock.part("communication"):
                dist.all_reduce(square)
        return torch.where(square.isfinite(), square.sqrt(), math.inf)

    def _assert_equal_group_counts(self, optimizer: torch.optim.Optimizer) -> None:
        """Optimizers that need whole tensors reduce once per parameter group: a missing group would hang."""
        count = torch.tensor([len(optimizer.param_groups)], device=self._topology.device)
        least = count.clone()
        dist.all_reduce(least, op=dist.ReduceOp.MIN, group=self._topology.model_group)
        assert least.item() == count.item(), "ranks of one model must have the same number of parameter groups"


def _held(parameter: nn.Parameter, flat: Tensor) -> Held:
    """What the flat tensor of the parameter's group holds of it; nothing where other ranks own all of it."""
    fragment = parameter._hp_mapping  # type: ignore[attr-defined]
    if fragment is None:
        return Held(parameter, 0, flat.detach()[:0], 0)
    return Held(
        parameter, fragment.lp_fragment_address.start, fragment.hp_fragment.detach(), fragment.hp_fragment_address.start
    )


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
