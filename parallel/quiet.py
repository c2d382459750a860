"""Imports of the engines without the lines they print about packages we do not need."""

import logging
import os
import warnings
from types import ModuleType


def megatron_parallel_state() -> ModuleType:
    """megatron-core's process-group registry, imported without its warnings about Transformer Engine and apex."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*Transformer Engine and Apex are not installed.*")
        from megatron.core import parallel_state
    return parallel_state


def deepspeed(device_type: str) -> ModuleType:
    """DeepSpeed for `cpu` or `cuda`, its log of information off, without the CPU op it would compile first (19 s)."""
    os.environ.setdefault("DS_ACCELERATOR", device_type)
    os.environ.setdefault("DEEPSPEED_LOG_LEVEL", "warning")
    logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
    logging.getLogger("DeepSpeed").addFilter(_is_of_use)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        import deepspeed as package
        from deepspeed import ops

    # On CPU, DeepSpeed builds a shared-memory collective for inference at init; training does not use it.
    ops.__compatible_ops__["deepspeed_shm_comm"] = False
    return package


def _is_of_use(record: logging.LogRecord) -> bool:
    """DeepSpeed warns of each optimizer that it has not tested itself: ours are tested here."""
    return "untested optimizer" not in record.getMessage()
