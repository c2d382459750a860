"""megatron-core's training path on a CPU: where it names a CUDA device, it gets the CPU, and nothing else changes.

Its schedules, gradient buffers and optimizer make their small tensors with `device="cuda"`, ask for the current device,
wait for it, and check tensors' type names. None of that is computing; without CUDA every one of them raises.
"""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import wraps
from typing import Any
from unittest import mock

import torch
from torch import Tensor

FACTORIES = ("zeros", "empty", "tensor")
"""Functions of torch that it calls with `device="cuda"`."""


@contextmanager
def cpu_for_cuda() -> Iterator[None]:
    """Within it, CUDA as the device of a new tensor means the CPU, and CPU tensors' type names say CUDA."""
    with ExitStack() as stack:
        for name in FACTORIES:
            stack.enter_context(mock.patch.object(torch, name, _on_cpu(getattr(torch, name))))
        stack.enter_context(mock.patch.object(torch.cuda, "current_device", return_value=torch.device("cpu")))
        stack.enter_context(mock.patch.object(torch.cuda, "synchronize"))
        stack.enter_context(mock.patch.object(Tensor, "type", _type_name(Tensor.type)))
        yield


def _on_cpu(factory: Callable[..., Tensor]) -> Callable[..., Tensor]:
    @wraps(factory)
    def made(*args: Any, **options: Any) -> Tensor:
        if options.get("device") == "cuda":
            options["device"] = "cpu"
        return factory(*args, **options)

    return made


def _type_name(type_of: Callable[..., Any]) -> Callable[..., Any]:
    def named(tensor: Tensor, *args: Any, **options: Any) -> Any:
        if args or options:
            return type_of(tensor, *args, **options)
        return type_of(tensor).replace("torch.", "torch.cuda.", 1)

    return named
