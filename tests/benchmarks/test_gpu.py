import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.gpu import shapes

ABSENT = ("pydantic", "deepspeed", "megatron", "mlflow", "rich", "yaml", "typer", "apex")
PROGRAM = f"""
import runpy, sys
for name in {ABSENT}:
    sys.modules[name] = None  # as in an image that has PyTorch alone
runpy.run_module("benchmarks.gpu", run_name="__main__", alter_sys=True)
"""


def run(path: Path, *parts: str) -> dict:
    arguments = ["--device", "cpu", "--shapes", "tiny", "--steps", "2", "--json", str(path), "--parts", *parts]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    root = Path(shapes.__file__).parents[2]
    subprocess.run([sys.executable, "-c", PROGRAM, *arguments], env=environment, cwd=root, check=True, timeout=170)
    return json.loads(path.read_text("utf-8"))


def test_shapes_are_those_of_the_configuration_files():
    assert json.loads(shapes.FILE.read_text("utf-8")) == shapes.resolved()


def test_torch_alone_is_enough_for_the_kernels(tmp_path):
    found = run(tmp_path / "gpu.json", "entropy", "boundary")
    assert found["entropy"][0]["ratio"] > 0
    assert {row["move"] for row in found["boundary"]} == {"refresh", "pull-back"}
    assert all(row["ms"] > 0 and row["floor_ms"] > 0 for row in found["boundary"])


@pytest.mark.slow
def test_torch_alone_is_enough_for_every_case(tmp_path):
    found = run(tmp_path / "gpu.json", "models")["models"]
    assert {row["case"] for row in found} >= {"plain", "sigmaReparam", "compile", "recompute full"}
    assert all(row["mfu"] is None and row["tokens_per_s"] > 0 for row in found)  # a CPU has no peak rate to speak of
