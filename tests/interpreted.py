"""Run a function in a process where Triton interprets its kernels, on CPU tensors."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
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
