"""What importing the engines brings with it, seen in a fresh interpreter."""

import subprocess
import sys

IMPORTS = """
import sys, torch
before = torch.compile
from parallel.quiet import deepspeed, megatron_parallel_state
megatron_parallel_state(), deepspeed("cpu")
from megatron.core.fusions.fused_bias_gelu import bias_gelu
assert torch.compile is before
print("mlflow" in sys.modules, "torch._inductor.compile_fx" in sys.modules, bias_gelu.__wrapped__.__name__)
"""


def test_the_engines_load_neither_mlflow_nor_the_compiler() -> None:
    done = subprocess.run([sys.executable, "-c", IMPORTS], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "False", "bias_gelu"]


def test_what_megatron_decorated_is_compiled_when_called() -> None:
    import torch

    from parallel.quiet import compiling_later

    def double(x: int) -> int:
        return 2 * x

    compiled = []
    real = torch.compile
    torch.compile = lambda function, **options: compiled.append(options) or function  # type: ignore[assignment]
    try:
        with compiling_later():
            plain, with_options = torch.compile(double), torch.compile(dynamic=True)(double)
        assert compiled == []
        assert plain(3) == plain(3) == with_options(3) == 6
        assert compiled == [{}, {"dynamic": True}]
    finally:
        torch.compile = real
