"""What every test can rely on: one thread per process, and no variables of a launcher or tracker around it."""

import os
import signal
from pathlib import Path

import pytest

from tests.slurm import slurm, slurm_session

__all__ = ["slurm", "slurm_session"]

os.environ.setdefault("OMP_NUM_THREADS", "1")
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # a shell's background job: the processes we interrupt inherit it
    signal.signal(signal.SIGINT, signal.default_int_handler)

LAUNCHER_VARIABLES = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "MLFLOW_TRACKING_URI")


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """A launcher's variables neither reach a test nor leave it."""
    for name in [*LAUNCHER_VARIABLES, *(name for name in os.environ if name.startswith("SLURM_"))]:
        monkeypatch.setenv(name, "")  # so that monkeypatch takes away what the test sets
        monkeypatch.delenv(name)


@pytest.fixture(scope="session")
def stdlib_bytes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The first two megabytes of the standard library's source in bytes, prepared once."""
    from data.prepare import prepare

    out = tmp_path_factory.mktemp("data") / "stdlib-bytes"
    prepare(["stdlib"], out, tokenizer="byte", max_bytes=2_000_000, workers=1, progress=False)
    return out
