"""Attention entropy beside the attention it measures, and the step boundary beside the memory it must move.

Shapes: B batch, T sequence, H query heads, G key/value heads, K head size.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import torch
from torch.nn import functional as F

from benchmarks.gpu.training import Training
from monitoring.entropy import attention_statistics

REFRESH_BYTES = 10
"""Per number of W: read once for the power iteration, once more to write W_hat in bf16 (fp32 weights)."""
PULL_BACK_BYTES = 16
"""Per number of W: W and its gradient read for <G, W>, then the gradient read and written."""


def seconds(function: Callable[[], object], device: torch.device, repeats: int = 20, warmup: int = 3) -> list[float]:
    """Times of single calls: events on a GPU, the clock elsewhere."""
    for _ in range(warmup):
        function()
    if device.type != "cuda":
        return [_clocked(function) for _ in range(repeats)]
    times = []
    for _ in range(repeats):
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        begin.record()
        function()
        end.record()
        end.synchronize()
        times.append(begin.elapsed_time(end) / 1e3)
    return times


def _clocked(function: Callable[[], object]) -> float:
    began = time.perf_counter()
    function()
    return time.perf_counter() - began


def entropy(device: torch.device, sizes: list[tuple[int, int, int, int, int]]) -> list[dict[str, object]]:
    """For each (B, T, H, G, K) in bf16: attention's forward time, and that of entropy, bound and largest logit."""
    found = []
    for B, T, H, G, K in sizes:
        q_BHTK, k_BGTK, v_BGTK = (
            torch.randn(B, heads, T, K, device=device, dtype=torch.bfloat16) for heads in (H, G, G)
        )
        scale = K**-0.5

        def attention(q=q_BHTK, k=k_BGTK, v=v_BGTK, scale=scale) -> object:  # type: ignore[no-untyped-def]
            return F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=scale, enable_gqa=True)

        def statistics_of(q=q_BHTK, k=k_BGTK, scale=scale) -> object:  # type: ignore[no-untyped-def]
            return attention_statistics(q, k, scale)

        forward = statistics.median(seconds(attention, device))
        entropy_s = statistics.median(seconds(statistics_of, device, repeats=10))
        found.append(
            {
                "shape": f"B {B}, T {T:,}, {H} heads over {G}, size {K}",
                "attention_ms": forward * 1e3,
                "entropy_ms": entropy_s * 1e3,
                "ratio": entropy_s / forward,
            }
        )
    return found


def copy_bandwidth(device: torch.device, size: int) -> float:
    """Bytes per second that a copy of `size` bytes moves, read and written."""
    source = torch.empty(size, dtype=torch.uint8, device=device).random_()
    target = torch.empty_like(source)
    return 2 * size / statistics.median(seconds(lambda: target.copy_(source), device))


def boundary(training: Training, bandwidth: float) -> list[dict[str, object]]:
    """Times of refresh and pull-back beside the least that the measured bandwidth allows."""
    numbers = sum(layer.weight.numel() for layer in training.spectral.layers if layer.reparametrised)
    for parameter in training.parameters:
        parameter.grad = torch.randn_like(parameter)
    found = []
    for name, move, least in (
        ("refresh", training.spectral.refresh, REFRESH_BYTES),
        ("pull-back", training.spectral.pull_back, PULL_BACK_BYTES),
    ):
        spent, floor = statistics.median(seconds(move, training.device)), numbers * least / bandwidth
        found.append(
            {"move": name, "numbers": numbers, "ms": spent * 1e3, "floor_ms": floor * 1e3, "ratio": spent / floor}
        )
    for parameter in training.parameters:
        parameter.grad = None
    return found
