"""Measure, print as it goes, and write JSON."""

from __future__ import annotations

import argparse
import gc
import json
import platform
import statistics
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from benchmarks.gpu import __doc__ as usage
from benchmarks.gpu.kernels import boundary, copy_bandwidth, entropy, seconds
from benchmarks.gpu.shapes import TINY
from benchmarks.gpu.training import Case, Training, rows, start
from model.flops import training_flops
from monitoring.devices import find

INTERVAL = 10
"""Steps between measurements by default: what a measured step costs more is spread over so many."""


def main() -> None:
    """All parts, or those named."""
    parser = argparse.ArgumentParser(description=usage, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="+", default=["models", "largest", "entropy", "boundary"])
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda", help="cpu: to try the program out")
    parser.add_argument("--shapes", nargs="+", default=["125m", "1b"])
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--json", type=Path, default=Path("runs/benchmarks/gpu.json"))
    arguments = parser.parse_args()
    if arguments.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: PyTorch sees no GPU here (cpu tries the program out)")
    device = start(arguments.device)
    report = Report(arguments.json, device)
    if "models" in arguments.parts:
        for shape in arguments.shapes:
            report.add("models", measure_cases(cases(shape, device), device, arguments.steps))
    if "largest" in arguments.parts:
        report.add("largest", largest(device, arguments.steps))
    if "entropy" in arguments.parts:
        report.add("entropy", entropy(device, entropy_sizes(device)))
    if "boundary" in arguments.parts:
        bandwidth = copy_bandwidth(device, 1 << 32 if device.type == "cuda" else 1 << 24)
        for shape in arguments.shapes:
            case = replace(cases(shape, device)[0], reparam="sigma", micro_batch=1)
            with built(case, device) as training:
                report.add("boundary", [{"shape": shape, **row} for row in boundary(training, bandwidth)])
    report.write()
    dist.barrier()
    dist.destroy_process_group()


def cases(shape: str, device: torch.device) -> list[Case]:
    """What is compared, each with one thing changed."""
    micro_batch = {"125m": 32, "1b": 4, "8b": 1, TINY: 2}[shape]
    plain = Case(shape, micro_batch)
    eager = [
        plain,
        replace(plain, reparam="sigma"),
        replace(plain, reparam="sigma", measured=True),
        replace(plain, optimizer="foreach"),
        replace(plain, recompute="selective"),
        replace(plain, recompute="full"),
    ]
    compiled = [replace(case, compiled=True) for case in (plain, replace(plain, reparam="sigma"))]
    return eager + compiled


def measure_cases(of: Iterable[Case], device: torch.device, steps: int) -> Iterator[dict[str, Any]]:
    """One row for each case that fits; the first is what the others are compared with."""
    baseline: float | None = None
    for case in of:
        row = measure(case, device, steps)
        if row is None:
            yield {"shape": case.shape, "case": case.label(), "does not fit": True}
            continue
        baseline = baseline or row["step_ms"]
        row["over_plain"] = row["step_ms"] / baseline
        if case.measured:  # such steps come once in an interval
            row["over_plain_at_interval"] = 1 + (row["over_plain"] - 1) / INTERVAL
        yield row


def measure(case: Case, device: torch.device, steps: int) -> dict[str, Any] | None:
    """Step time, tokens/s, utilisation and memory of one case; None if it does not fit."""
    try:
        with built(case, device) as training:
            if device.type == "cuda":
                torch.cuda.reset_peak_memory_stats(device)
            times = seconds(training.step, device, repeats=steps)
            step = statistics.median(times)
            low, _, high = statistics.quantiles(times, n=4)
            flops = training_flops(training.shape, rows(training.shape), training.shape.length).total
            rate = flops * training.tokens / step
            known = find(torch.cuda.get_device_name(device)) if device.type == "cuda" else None
            return {
                "shape": case.shape if case.layers is None else f"{case.shape} of {case.layers} layers",
                "case": case.label(),
                "parameters": sum(p.numel() for p in training.parameters),
                "tokens": training.tokens,
                "step_ms": step * 1e3,
                "quartiles_ms": [low * 1e3, high * 1e3],
                "tokens_per_s": training.tokens / step,
                "tflops": rate / 1e12,
                "mfu": rate / (known.tflops["bf16"] * 1e12) if known else None,
                "memory_gib": torch.cuda.max_memory_allocated(device) / 2**30 if device.type == "cuda" else None,
                "settings": asdict(case),
            }
    except torch.OutOfMemoryError:
        return None


def largest(device: torch.device, steps: int) -> Iterator[dict[str, Any]]:
    """The 8B shape with as many layers as fit, with compilation and full recompute: sigmaReparam off and on."""
    if device.type != "cuda":
        return
    for layers in range(32, 0, -2):
        case = Case("8b", 1, recompute="full", compiled=True, layers=layers)
        row = measure(replace(case, reparam="sigma"), device, steps)
        if row is not None:
            yield row
            yield measure(case, device, steps) or {"shape": "8b", "case": "plain", "does not fit": True}
            return


def entropy_sizes(device: torch.device) -> list[tuple[int, int, int, int, int]]:
    """(B, T, H, G, K) of the models, and of long sequences."""
    if device.type != "cuda":
        return [(1, 128, 4, 2, 16)]
    return [(32, 1024, 12, 12, 64), (4, 4096, 32, 8, 64), (1, 8192, 32, 8, 128), (1, 32768, 32, 8, 128)]


@contextmanager
def built(case: Case, device: torch.device) -> Iterator[Training]:
    """A training whose memory is given back."""
    training = Training(case, device)
    try:
        yield training
    finally:
        del training
        gc.collect()
        if device.type == "cuda":
            torch.cuda.empty_cache()


class Report:
    """Rows printed as they come, kept for the JSON file; the first process speaks."""

    def __init__(self, path: Path, device: torch.device) -> None:
        name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor() or "CPU"
        self._path, self._speaks = path, dist.get_rank() == 0
        self._content: dict[str, Any] = {
            "device": name,
            "processes": dist.get_world_size(),
            "torch": torch.__version__,
            "cuda": torch.version.cuda,
            "python": platform.python_version(),
        }
        self._say(", ".join(f"{key} {value}" for key, value in self._content.items()))

    def add(self, part: str, found: Iterable[dict[str, Any]]) -> None:
        """Print and keep the rows of a part; the file is written anew, so that nothing is lost."""
        for row in found:
            self._content.setdefault(part, []).append(row)
            shown = {key: value for key, value in row.items() if key not in ("settings", "quartiles_ms")}
            self._say(f"{part}: " + "  ".join(f"{key} {_short(value)}" for key, value in shown.items()))
            self.write()

    def write(self) -> None:
        if self._speaks:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._path.write_text(json.dumps(self._content, indent=1) + "\n", "utf-8")

    def _say(self, line: str) -> None:
        if self._speaks:
            print(line, flush=True)


def _short(value: object) -> str:
    if isinstance(value, float):
        return f"{value:,.3f}" if abs(value) < 100 else f"{value:,.0f}"
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)


if __name__ == "__main__":
    main()
