"""Runs of the project's own trainer, on bytes of the standard library's source."""

import subprocess
import sys
from pathlib import Path

from configs.errors import LaunchError
from data.prepare import prepare

MAX_BYTES = 4_000_000


def prepared_bytes(folder: Path) -> Path:
    """The dataset of the demo study, prepared in `folder` unless it is there."""
    if not folder.exists():
        prepare(["stdlib"], folder, tokenizer="byte", max_bytes=MAX_BYTES, workers=1, progress=False)
    return folder


def train(config: Path, data: Path, run_dir: Path, *overrides: str) -> Path:
    """`steadytrain train` in a process of its own; what `run_dir` held is replaced. Returns `run_dir`.

    A run that diverged is a result. Raises LaunchError: the run failed.
    """
    command = [sys.executable, "-m", "launcher", "train", str(config), "--overwrite"]
    settings = [
        f"data.sources=[{{path: {data}}}]", f"run.dir={run_dir.parent}", f"run.name={run_dir.name}",
        "tracking.kind=none", "monitoring.pictures=false", *overrides,
    ]  # fmt: skip
    done = subprocess.run([*command, *settings], capture_output=True, text=True, check=False)
    if done.returncode not in (0, 3):
        raise LaunchError(f"{' '.join(command)}: exit code {done.returncode}: {done.stderr.strip()}")
    return run_dir
