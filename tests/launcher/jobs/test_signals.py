"""A signal is heard at once, whatever the main thread waits for."""

import os
import signal
import subprocess
import sys
import threading

import pytest

from launcher.jobs.signals import stop_signals

STUCK = """
from launcher.jobs.signals import stop_signals
with stop_signals(5.0, lambda name: print(name, flush=True)):
    print("ready", flush=True)
    # In C, without the interpreter's lock, as in a collective: no Python handler runs here.
    import ctypes
    libc, mutex = ctypes.CDLL(None), ctypes.create_string_buffer(64)
    libc.pthread_mutex_init(mutex, None)
    libc.pthread_mutex_lock(mutex)
    libc.pthread_mutex_lock(mutex)
"""


@pytest.mark.parametrize(("number", "has_deadline"), [(signal.SIGUSR2, True), (signal.SIGTERM, False)])
def test_a_signal_requests_a_stop_and_is_told(number: signal.Signals, has_deadline: bool) -> None:
    heard, names = threading.Event(), list[str]()
    with stop_signals(30.0, lambda name: (names.append(name), heard.set())) as stop:  # type: ignore[func-returns-value]
        assert not stop.requested
        os.kill(os.getpid(), number)
        assert heard.wait(5)
    assert (names, stop.reason) == ([number.name], number.name)
    left = stop.seconds_left()
    assert (left is not None and 20 < left <= 30) if has_deadline else left is None


def test_sigcont_is_no_request() -> None:
    with stop_signals(30.0, lambda name: None) as stop:
        os.kill(os.getpid(), signal.SIGCONT)
    assert not stop.requested


def test_handlers_are_put_back() -> None:
    before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGUSR2)
    with stop_signals(30.0, lambda name: None):
        assert signal.getsignal(signal.SIGTERM) is not before[0]
    assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGUSR2)) == before


def test_it_is_heard_while_the_main_thread_waits_in_c() -> None:
    process = subprocess.Popen([sys.executable, "-c", STUCK], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        process.send_signal(signal.SIGTERM)
        assert process.stdout.readline() == "SIGTERM\n"
        assert process.poll() is None, "it must still wait: only a flag is set"
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


def test_a_second_signal_only_brings_the_end_nearer() -> None:
    from training.stop import Stop

    stop = Stop()
    stop.request("SIGUSR2", 100.0)
    stop.request("SIGTERM", 5.0)
    stop.request("SIGTERM")
    left = stop.seconds_left()
    assert stop.reason == "SIGUSR2"
    assert left is not None
    assert left <= 5
