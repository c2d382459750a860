"""Signals that ask a rank to stop: they set a flag, at once, whatever the main thread is waiting for.

A Python handler runs when the main thread is back in Python: not while it waits in a collective for a rank that is
gone. The interpreter's own handler writes each signal's number to a pipe in any case; a thread reads it there.
"""

import contextlib
import os
import signal
import threading
from collections.abc import Callable, Iterator

from training.stop import Stop

WARNINGS = (signal.SIGUSR2,)
"""Sent a known time before the end: at the time limit, and by a preemption that warns."""
LAST_WORDS = (signal.SIGTERM,)
"""Followed by SIGKILL after a time that only Slurm knows (KillWait)."""
IGNORED = (signal.SIGCONT,)
"""Sent by Slurm together with SIGTERM."""


@contextlib.contextmanager
def stop_signals(grace_s: float, told: Callable[[str], None]) -> Iterator[Stop]:
    """While open, the signals above request a stop; `told` hears each one's name, in a thread. Main thread only."""
    stop = Stop()
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    before = {number: signal.signal(number, lambda *_: None) for number in (*WARNINGS, *LAST_WORDS, *IGNORED)}
    before_pipe = signal.set_wakeup_fd(writer)

    def listen() -> None:
        while number := os.read(reader, 1):
            if number[0] in WARNINGS:
                stop.request(_name(number[0]), grace_s)
            elif number[0] in LAST_WORDS:
                stop.request(_name(number[0]))
            else:
                continue
            told(_name(number[0]))

    thread = threading.Thread(target=listen, name="signals", daemon=True)
    thread.start()
    try:
        yield stop
    finally:
        signal.set_wakeup_fd(before_pipe)
        for number, handler in before.items():
            signal.signal(number, handler)
        os.close(writer)
        thread.join()
        os.close(reader)


def _name(number: int) -> str:
    return signal.Signals(number).name
