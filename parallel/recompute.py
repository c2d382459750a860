"""Telling the first forward pass of a checkpointed layer from its recomputation.

A monitor that counted both would count every token twice.
"""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar

_recomputing: ContextVar[bool] = ContextVar("recomputing", default=False)


def is_recomputing() -> bool:
    """Whether this forward pass repeats an earlier one inside the backward pass."""
    return _recomputing.get()


def recompute_context() -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
    """`context_fn` for `torch.utils.checkpoint.checkpoint`: (first forward, recomputation)."""
    return nullcontext(), _mark_recomputing()


@contextmanager
def _mark_recomputing() -> Iterator[None]:
    token = _recomputing.set(True)
    try:
        yield
    finally:
        _recomputing.reset(token)
