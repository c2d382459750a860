"""Whether torch.compile can make anything on this machine: asked before a run that needs it begins."""

import torch
from torch import Tensor
from torch._dynamo.exc import BackendCompilerFailed

from configs.errors import ConfigError


def require_compiler(device: torch.device) -> None:
    """Compile something small for `device`, some seconds where torch has not kept it.

    Raises: ConfigError, with the compiler's first line, if that fails.
    """
    try:
        torch.compile(_small, dynamic=False)(torch.ones(64, device=device))
    except BackendCompilerFailed as error:
        needs = "a C++ compiler (g++)" if device.type == "cpu" else "triton and a C compiler (gcc)"
        cause = error.inner_exception
        reason = next(iter(str(cause).splitlines()), type(cause).__name__)
        raise ConfigError(
            f"training.compile = true: torch.compile does not work on this machine; it needs {needs}: {reason}"
        ) from error


def _small(x: Tensor) -> Tensor:
    return x.sin() * 2 + 1
