"""torch's build against the GPUs of this machine, a product on each device, and NVIDIA apex.

Shape legend: N rows and columns of a test matrix.
"""

import importlib.util
from collections.abc import Iterator
from contextlib import suppress
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING

from launcher.doctor.finding import Asked, Finding, ok, problem, warning

if TYPE_CHECKING:
    from torch import Tensor

DRIVER = Path("/proc/driver/nvidia/version")
NODES = Path("/dev")
SIZE = 128
"""Sums of so many zeros and ones are exact in bf16."""


def check(asked: Asked) -> Iterator[Finding]:
    """The build, each device, triton where there are GPUs, apex."""
    import torch

    count = torch.cuda.device_count()
    yield build(torch.version.cuda, driver_version(), gpu_files(), count, _nccl() if count else None)
    names = ["cpu", *(f"cuda:{index}" for index in range(count))]
    for name in names:
        yield product(name)
    if count and importlib.util.find_spec("triton") is None:
        yield problem("triton", "not installed", "install the CUDA build of torch, which brings it: `make clean test`")
    yield apex(count)


def build(cuda: str | None, driver: str | None, files: int, count: int, nccl: str | None) -> Finding:
    """`cuda`: torch's; `driver`: NVIDIA's, None if there is none; `files`: GPUs in /dev; `count`: those torch sees."""
    if cuda is None and (driver is not None or files):
        seen = f"driver {driver}" if driver is not None else f"{files} GPUs in /dev"
        return problem(
            "torch build", f"CPU only, but this machine has NVIDIA GPUs ({seen})",
            "install torch's CUDA build: `pip install --force-reinstall torch` of the pinned version, from PyPI",
        )  # fmt: skip
    if cuda is None:
        return ok("torch build", "CPU; no NVIDIA driver on this machine")
    if count:
        return ok("torch build", f"CUDA {cuda}, driver {driver or 'unknown'}, {count} GPUs, NCCL {nccl}")
    if driver is None and not files:
        return ok("torch build", f"CUDA {cuda}; no NVIDIA driver on this machine: it trains on the CPU")
    return problem(
        "torch build", f"CUDA {cuda} sees no GPU, though there are {files} in /dev and driver {driver or 'none'}",
        f"look at nvidia-smi and CUDA_VISIBLE_DEVICES; CUDA {cuda} may need a newer driver",
    )  # fmt: skip


def driver_version() -> str | None:
    """NVIDIA's kernel driver, as it names itself; None without one."""
    with suppress(OSError):
        words = DRIVER.read_text().split()
        return next((word for word in words if word[:1].isdigit() and "." in word), "of unknown version")
    return None


def gpu_files() -> int:
    """GPUs that this machine, or container, has files of."""
    return sum(path.name.removeprefix("nvidia").isdecimal() for path in NODES.glob("nvidia*"))


def product(name: str) -> Finding:
    """A product of zeros and ones in fp32 and bf16, whose exact result is known."""
    import torch

    check = f"product on {name}"
    left_NN = (torch.arange(SIZE * SIZE).view(SIZE, SIZE) % 3 == 0).long()
    right_NN = (torch.arange(SIZE * SIZE).view(SIZE, SIZE) % 5 == 0).long()
    exact_NN = left_NN @ right_NN
    try:
        for dtype in (torch.float32, torch.bfloat16):
            got_NN: Tensor = left_NN.to(name, dtype) @ right_NN.to(name, dtype)
            if not torch.equal(got_NN.cpu().long(), exact_NN):
                fix = "do not train on this device: run its vendor's diagnosis (dcgmi diag, memtest)"
                return problem(check, f"wrong numbers in {str(dtype).removeprefix('torch.')}", fix)
    except (RuntimeError, AssertionError) as error:  # torch's, for anything that a device complains of
        return problem(check, str(error).strip().splitlines()[0], "nvidia-smi: is it in use, full, or in error?")
    return ok(check, f"exact in fp32 and bf16{_named(name)}")


def apex(gpus: int) -> Finding:
    """NVIDIA's, told by its compiled parts from the package of that name on PyPI."""
    import torch  # noqa: F401 (apex's compiled parts need its libraries)

    if importlib.util.find_spec("apex") is None:
        return ok("apex", "not installed: AdamW is torch's fused one")
    if importlib.util.find_spec("amp_C") is not None:
        try:
            from apex.optimizers import FusedAdam  # noqa: F401
        except (ImportError, OSError, RuntimeError, AttributeError) as error:  # built against another torch
            fix = "build it again against this torch, or `pip uninstall apex`: AdamW is then torch's fused one"
            return problem("apex", f"NVIDIA's, but it cannot be imported: {str(error).splitlines()[0]}", fix)
        return ok("apex", "NVIDIA's, with its kernels" + ("" if gpus else "; used on GPUs only"))
    nvidia = importlib.util.find_spec("apex") is not None and _has_module("apex", "multi_tensor_apply")
    what = "NVIDIA's without its kernels (amp_C)" if nvidia else f"not NVIDIA's: PyPI's {_apex_on_pypi()}"
    fix = "build it from https://github.com/NVIDIA/apex with its extensions" if nvidia else "`pip uninstall apex`"
    return warning("apex", what, f"{fix}; AdamW is torch's fused one meanwhile")


def _has_module(package: str, name: str) -> bool:
    """Whether a package's folder has it; the package itself is not run."""
    found = importlib.util.find_spec(package)
    folders = (found.submodule_search_locations or []) if found is not None else []
    return any((Path(folder) / name).is_dir() for folder in folders)


def _apex_on_pypi() -> str:
    try:
        return f"apex {metadata.version('apex')}"
    except metadata.PackageNotFoundError:
        return "package of that name"


def _nccl() -> str:
    import torch

    return ".".join(map(str, torch.cuda.nccl.version()))


def _named(name: str) -> str:
    import torch

    return f" ({torch.cuda.get_device_name(name)})" if name.startswith("cuda") else ""
