"""Where Triton kernels are used: on GPUs, where triton is installed. What they then raise is raised."""

from functools import cache
from importlib.util import find_spec

import torch


@cache
def _has_triton() -> bool:
    return find_spec("triton") is not None


def runs_triton(device: torch.device) -> bool:
    """Whether the kernels, and not the portable operations, work on tensors of this device."""
    return device.type == "cuda" and _has_triton()
