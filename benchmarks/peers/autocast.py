"""How the plain loops compute in bf16."""

from contextlib import AbstractContextManager, nullcontext

import torch


def autocast(precision: str) -> AbstractContextManager[object]:
    """Torch's autocast for `bf16`, nothing for `fp32`: parameters stay fp32, what is safe in bf16 is done in it."""
    return torch.autocast("cpu", torch.bfloat16) if precision == "bf16" else nullcontext()
