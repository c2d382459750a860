"""Activation recomputation: what of a layer is kept for the backward pass, and what is computed again there.

Every way gives the same gradients to the bit: what is computed again is computed from the same numbers.
"""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import _disable_current_modes
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts

Recompute = Literal["none", "selective", "full"]
Contexts = tuple[AbstractContextManager[Any], AbstractContextManager[Any]]
"""Around the first forward pass, and around its repetition."""

_recomputing: ContextVar[bool] = ContextVar("recomputing", default=False)
_choosing: ContextVar[bool] = ContextVar("choosing", default=False)

aten, c10d, functional = torch.ops.aten, torch.ops.c10d, torch.ops._c10d_functional
KEPT = frozenset(
    {
        aten.mm.default,
        aten.addmm.default,
        aten._scaled_dot_product_flash_attention.default,
        aten._scaled_dot_product_flash_attention_for_cpu.default,
        aten._scaled_dot_product_efficient_attention.default,
        aten._scaled_dot_product_cudnn_attention.default,
        aten._scaled_dot_product_fused_attention_overrideable.default,
        c10d.allreduce_.default,
        functional.all_reduce.default,
        functional.reduce_scatter_tensor.default,
    }
)
"""Operations that selective recomputation does not repeat.

Not among them: batched products (bmm), which are the T x T scores of attention with a cap, and factors of single heads;
and all-gathers, whose result has the tokens of all ranks: Megatron-LM too gathers again in the backward pass.

c10d's all-reduce writes its result in the place of its input, the product before it: what is kept of that product is
the sum, held once, and neither is done again.
"""


def run_layer(layer: nn.Module, x: Tensor, recompute: Recompute) -> Tensor:
    """layer(x); under autograd its backward pass finds what `recompute` says.

    `none`: all that it needs; `full`: x alone; `selective`: x and what the operations in KEPT gave.
    (Korthikanti et al. 2022, section 5, keep products and repeat attention, which held its scores then; fused attention
    holds little and costs time.)
    """
    if recompute == "none" or not torch.is_grad_enabled():
        return layer(x)
    # Nothing in a layer is random: no generator's state to copy from the device and back.
    run = partial(checkpoint, layer, x, use_reentrant=False, preserve_rng_state=False)
    if torch.compiler.is_compiling():  # takes no contexts but torch's own; and no probe looks into a compiled layer
        return run(context_fn=_choice) if recompute == "selective" else run()
    return run(context_fn=_selective if recompute == "selective" else _full)


def is_recomputing() -> bool:
    """Whether this forward pass repeats an earlier one inside the backward pass."""
    return _recomputing.get()


@contextmanager
def not_repeated() -> Iterator[None]:
    """For operations of a first forward pass that its repetition will not do, as those of a probe.

    Selective recomputation finds what it kept by counting operations: it must not see these.
    """
    if not _choosing.get():
        yield
        return
    with _disable_current_modes():
        yield


def _full() -> Contexts:
    return nullcontext(), _marked(_recomputing)


def _selective() -> Contexts:
    choose, reuse = _choice()
    return _marked(_choosing, choose), _marked(_recomputing, reuse)


def _choice() -> Contexts:
    return create_selective_checkpoint_contexts(_policy)


def _policy(_: object, operation: Any, *args: object, **options: object) -> CheckpointPolicy:
    return CheckpointPolicy.MUST_SAVE if operation in KEPT else CheckpointPolicy.PREFER_RECOMPUTE


@contextmanager
def _marked(variable: ContextVar[bool], inner: AbstractContextManager[Any] | None = None) -> Iterator[None]:
    token = variable.set(True)
    try:
        with inner or nullcontext():
            yield
    finally:
        variable.reset(token)
