"""torch's build against what the machine has, and which apex is installed."""

import sys
from pathlib import Path

import pytest
import torch

from launcher.doctor.devices import apex, build, product


@pytest.mark.parametrize(
    ("cuda", "driver", "files", "count", "verdict", "words"),
    [
        (None, None, 0, 0, "ok", "CPU; no NVIDIA driver"),
        (None, "580.65", 8, 0, "problem", "CPU only, but this machine has NVIDIA GPUs (driver 580.65)"),
        (None, None, 2, 0, "problem", "2 GPUs in /dev"),
        ("13.0", "580.65", 8, 8, "ok", "CUDA 13.0, driver 580.65, 8 GPUs, NCCL 2.28"),
        ("13.0", None, 0, 0, "ok", "trains on the CPU"),
        ("13.0", "470.1", 8, 0, "problem", "sees no GPU"),
    ],
)
def test_torch_s_build_and_the_gpus_present(cuda, driver, files, count, verdict, words) -> None:
    found = build(cuda, driver, files, count, "2.28")
    assert found.verdict == verdict and words in found.found
    assert (found.fix is None) == (verdict == "ok")


def test_a_device_that_is_right_wrong_or_dead(monkeypatch: pytest.MonkeyPatch) -> None:
    assert product("cpu").verdict == "ok"
    dead = product("cuda:0") if not torch.cuda.is_available() else None
    equal = torch.equal
    monkeypatch.setattr(torch, "equal", lambda got, exact: equal(got + 1, exact))
    assert product("cpu").found == "wrong numbers in float32"
    assert dead is None or dead.verdict == "problem"


def test_no_apex_is_fine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", [])
    assert apex(0).verdict == "ok"


@pytest.mark.parametrize(
    ("files", "verdict", "words"),
    [
        (["apex/__init__.py"], "warning", "not NVIDIA's"),
        (["apex/__init__.py", "apex/multi_tensor_apply/__init__.py"], "warning", "without its kernels"),
        (["apex/__init__.py", "apex/optimizers.py", "amp_C.py"], "problem", "cannot be imported"),
    ],
)
def test_which_apex(files, verdict, words, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in files:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    monkeypatch.syspath_prepend(tmp_path)
    for name in ("apex", "apex.optimizers"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    found = apex(1)
    assert found.verdict == verdict and words in found.found
    for name in ("apex", "apex.optimizers", "amp_C"):
        sys.modules.pop(name, None)
