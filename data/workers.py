"""Spread work over processes: results in order, bounded memory, and no process outlives its parent."""

import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import connection
from typing import TypeVar

from configs.errors import DataError

Task = TypeVar("Task")
Result = TypeVar("Result")
AHEAD = 2


def available_cores() -> int:
    """Cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def ordered(function: Callable[[Task], Result], tasks: Iterable[Task], workers: int) -> Generator[Result, None, None]:
    """Results of `function` on each task, in the order of the tasks, computed by `workers` processes.

    At most `AHEAD` tasks per worker are under way, however many there are. Close the iterator to end the processes.

    Raises: DataError if a worker process dies; whatever `function` raises.
    """
    # Spawned, not forked: the parent has threads (the progress bar, torch's).
    executor = ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), initializer=_follow_parent)
    pending: deque[Future[Result]] = deque()
    try:
        for task in tasks:
            pending.append(executor.submit(function, task))
            if len(pending) > AHEAD * workers:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    except BrokenProcessPool as error:
        raise DataError("a worker process died (out of memory?): try fewer workers") from error
    finally:
        executor.shutdown(cancel_futures=True)


def _follow_parent() -> None:
    """In a worker: die quietly on Ctrl-C, and when the parent is gone."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch() -> None:
        connection.wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
