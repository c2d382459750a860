"""Triton's kernels without a GPU: run by its interpreter on CPU tensors, or compiled for one that is not there."""

from __future__ import annotations

import multiprocessing
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

Call = Callable[..., Any]


@contextmanager
def interpreter() -> Iterator[Call]:
    """Gives `call(function, *args)`, which runs it there and returns or raises what it does.

    Triton decides when it is imported whether kernels are interpreted, and here or in the fork server of
    `tests.distributed` it may have been.
    """
    context = multiprocessing.get_context("spawn")
    before = os.environ.get("TRITON_INTERPRET")
    os.environ["TRITON_INTERPRET"] = "1"
    try:
        with ProcessPoolExecutor(1, mp_context=context) as pool:
            yield lambda function, *args: pool.submit(function, *args).result()
    finally:
        os.environ.pop("TRITON_INTERPRET")
        if before is not None:
            os.environ["TRITON_INTERPRET"] = before


def run_compiled(module: str, function: str, cache: Path) -> None:
    """Call a function of a module in a process where Triton compiles; `cache` is where it puts what it makes."""
    found = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    code = f"from {module} import {function}; {function}()"
    command, environment = [sys.executable, "-c", code], found | {"TRITON_CACHE_DIR": str(cache)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def compile_for_hopper(kernel: Any, kinds: dict[str, str], constants: dict[str, Any]) -> Any:
    """The kernel as Triton makes it for an H100: `kinds` of arguments ("*fp32", "i32") and values of constants."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    names = kernel.arg_names
    signature = {name: "constexpr" if name in constants else kinds[name] for name in names}
    fixed = {(names.index(name),): value for name, value in constants.items() if name in names}
    return triton.compile(ASTSource(kernel, signature, fixed), target=GPUTarget("cuda", 90, 32))
