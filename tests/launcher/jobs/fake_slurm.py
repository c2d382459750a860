"""A Slurm of small scripts: it remembers what it was asked and answers as the real one did.

Its folder holds `queue` (what squeue shows), `down` (nodes that sinfo shows), `scripts/<job id>` (what was queued),
`environment` (of the last sbatch) and `cancelled`.
"""

import os
from dataclasses import dataclass
from pathlib import Path

import pytest

SBATCH = r"""#!/bin/bash
cd "$(dirname "$0")"; script="${@: -1}"
env -0 > environment
refuse() { printf '%s\n' "$1" >&2; exit 1; }
kind="sbatch: error: Batch job submission failed"; [[ $1 == --test-only ]] && kind="allocation failure"
if grep -q '^#SBATCH --partition=nix' "$script"; then
    refuse "sbatch: error: invalid partition specified: nix
$kind: Invalid partition name specified"
fi
grep -q '^#SBATCH --reservation=nix' "$script" && refuse "$kind: Requested reservation is invalid"
grep -q '^#SBATCH --foo' "$script" && refuse "sbatch: unrecognized option '--foo=1'
Try \"sbatch --help\" for more information"
if [[ $1 == --test-only ]]; then
    grep -q '^#SBATCH --nodes=9' "$script" && refuse "$kind: Requested node configuration is not available"
    echo "sbatch: Job 1 to start at 2030-01-01T00:00:00 using 1 processors on nodes n1 in partition main" >&2; exit 0
fi
[[ -e full && $(ls scripts | wc -l) -ge $(cat full) ]] && refuse "$kind: Job violates accounting/QOS policy"
id=$((100 + $(ls scripts | wc -l))); cp "$script" scripts/$id
echo "Submitted batch job $id"
"""
OTHERS = {
    "squeue": 'cat "$(dirname "$0")/queue"',
    "sinfo": 'cat "$(dirname "$0")/down"',
    "scancel": 'echo "$@" >> "$(dirname "$0")/cancelled"',
    "srun": "exit 1",  # submitit looks whether it is there
}


@dataclass(frozen=True)
class FakeSlurm:
    """The scripts' folder, which is the first of PATH."""

    folder: Path

    def queue(self, *lines: str) -> None:
        (self.folder / "queue").write_text("".join(f"{line}\n" for line in lines))

    @property
    def scripts(self) -> list[str]:
        """Batch scripts that were queued, in this order."""
        return [path.read_text() for path in sorted((self.folder / "scripts").iterdir())]

    @property
    def environment(self) -> dict[str, str]:
        """Of the last sbatch."""
        lines = (self.folder / "environment").read_text().split("\0")
        return dict(line.split("=", 1) for line in lines if "=" in line)


def install(folder: Path, monkeypatch: pytest.MonkeyPatch) -> FakeSlurm:
    """Put a fake Slurm on PATH."""
    (folder / "scripts").mkdir(parents=True)
    others = {name: f"#!/bin/bash\n{text}\n" for name, text in OTHERS.items()}
    for name, script in ({"sbatch": SBATCH} | others).items():
        path = folder / name
        path.write_text(script)
        path.chmod(0o755)
    for name in ("queue", "down"):
        (folder / name).write_text("")
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
    return FakeSlurm(folder)


def write_configuration(path: Path, data: Path) -> None:
    """A small run called `a`."""
    path.write_text(
        f"data: {{sources: [{{path: {data}}}]}}\n"
        "run: {name: a}\n"
        "model: {layers: 4, hidden_size: 64, heads: 4}\n"
        "training: {steps: 20, global_batch_size: 16, sequence_length: 64}\n"
    )
