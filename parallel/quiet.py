"""Imports of the engines without the lines they print, and the packages they load, that we do not need."""

import functools
import logging
import os
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any


@contextmanager
def importing_megatron() -> Iterator[None]:
    """Parts of megatron-core imported inside neither warn about Transformer Engine and apex nor compile anything.

    Who imports them again, anywhere, hears nothing.
    """
    with warnings.catch_warnings(), compiling_later():
        warnings.filterwarnings("ignore", message=".*Transformer Engine and Apex are not installed")
        yield


def megatron_parallel_state() -> ModuleType:
    """megatron-core's process-group registry."""
    with importing_megatron():
        from megatron.core import parallel_state
    return parallel_state


def megatron_mappings() -> ModuleType:
    """megatron-core's collectives with gradients."""
    with importing_megatron():
        from megatron.core.tensor_parallel import mappings
    return mappings


def old_names_of_collectives() -> None:
    """Torch 2.13 warns of the names that its collectives had so far, which DeepSpeed uses and older torches know."""
    warnings.filterwarnings(
        "ignore", message=r".*`torch\.distributed\.\w+_tensor` is deprecated", category=FutureWarning
    )


def deepspeed(device_type: str) -> ModuleType:
    """DeepSpeed for `cpu` or `cuda`, its log of information off, without the CPU op it would compile first (19 s)."""
    os.environ.setdefault("DS_ACCELERATOR", device_type)
    os.environ.setdefault("DEEPSPEED_LOG_LEVEL", "warning")
    logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
    logging.getLogger("DeepSpeed").addFilter(_is_of_use)
    with warnings.catch_warnings(), _without_mlflow():
        warnings.simplefilter("ignore", FutureWarning)
        import deepspeed as package
        from deepspeed import ops

    # On CPU, DeepSpeed builds a shared-memory collective for inference at init; training does not use it.
    ops.__compatible_ops__["deepspeed_shm_comm"] = False
    return package


@contextmanager
def compiling_later() -> Iterator[None]:
    """megatron-core compiles its fused functions when it is imported, which loads torch's whole compiler (1.7 s).

    Inside, what is decorated with `torch.compile` is compiled when it is first called.
    """
    import torch

    compile_now = torch.compile

    def later(function: Callable[..., Any] | None = None, **options: Any) -> Callable[..., Any]:
        if function is None:
            return functools.partial(later, **options)
        compiled: list[Callable[..., Any]] = []

        @functools.wraps(function)
        def call(*args: Any, **kwargs: Any) -> Any:
            if not compiled:
                compiled.append(compile_now(function, **options))
            return compiled[0](*args, **kwargs)

        return call

    torch.compile = later  # type: ignore[assignment]
    try:
        yield
    finally:
        torch.compile = compile_now


@contextmanager
def _without_mlflow() -> Iterator[None]:
    """DeepSpeed's autotuner, which we do not use, imports MLflow where it is installed (0.9 s on every rank)."""
    if "mlflow" in sys.modules:
        yield
        return
    sys.modules["mlflow"] = None  # type: ignore[assignment]
    try:
        yield
    finally:
        del sys.modules["mlflow"]


def _is_of_use(record: logging.LogRecord) -> bool:
    """DeepSpeed warns of each optimizer that it has not tested itself: ours are tested here."""
    return "untested optimizer" not in record.getMessage()
