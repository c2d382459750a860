"""One rank of a run: `python -m launcher.worker CONFIG.yaml LOGS ENTRY`, started by `launcher.local`."""

import ctypes
import os
import signal
import sys
from pathlib import Path
from pkgutil import resolve_name

from configs.errors import SteadytrainError
from configs.load import load
from launcher.failure import Failure
from launcher.outcome import Outcome

FINISHED, CRASHED, USER_ERROR, INTERRUPTED = 0, 1, 2, 130
PR_SET_PDEATHSIG = 1  # prctl(2)


def main(config_path: Path, logs: Path, entry: str) -> int:
    """Call `entry` (`module:function`) with the configuration; record how it ended. Returns the exit code."""
    rank = int(os.environ["RANK"])
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # as torchrun: ranks share the machine's cores
    try:
        config = load(config_path)
        summary = resolve_name(entry)(config)
        if rank == 0:
            Outcome.of(summary, config.run_dir).write(logs)
    except KeyboardInterrupt:
        return INTERRUPTED
    except SteadytrainError as error:
        _record(error, rank, logs, is_user_error=True)
        return USER_ERROR
    except Exception as error:  # noqa: BLE001 (the boundary of the process: recorded, and the exit code says so)
        _record(error, rank, logs, is_user_error=False)
        return CRASHED
    return FINISHED


def _record(error: BaseException, rank: int, logs: Path, *, is_user_error: bool) -> None:
    """Leave the failure for the launcher; where that cannot be written (full disk, folder gone), say it on stderr."""
    failure = Failure.of(error, rank, is_user_error=is_user_error)
    try:
        failure.write(logs, error)
    except OSError:
        print(failure.message, file=sys.stderr)  # noqa: T201


def end_with_parent() -> None:
    """Have the kernel end this process when its parent dies, kill -9 included (Linux only)."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() == 1:  # it died before we asked
            os._exit(CRASHED)


if __name__ == "__main__":
    end_with_parent()
    code = main(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3])
    sys.stdout.flush()
    sys.stderr.flush()
    if code != FINISHED:
        # A failed rank may hold collectives that will never finish: no destructor may wait for them.
        os._exit(code)
